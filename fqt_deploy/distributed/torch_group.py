"""The processes of one training on ``torch.distributed``, as torchrun starts them."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.distributed.code_sum import CodeSum
from fqt_deploy.distributed.gradient_sum import GradientSum
from fqt_deploy.distributed.waiting import lost, wait_for
from fqt_deploy.distributed.watch import Watch
from fqt_deploy.runtime.exchange import Exchange
from fqt_deploy.runtime.library import Library

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_BACKENDS = ("gloo", "mpi")
"""Backends that move data of the CPU."""
_CONNECTING = timedelta(minutes=5)
"""How long the processes may take to find each other."""
_SLOWEST = timedelta(hours=12)
"""How long a process may be behind the others, as in an evaluation; one that has ended is noticed by ``Watch``."""


def ranks_in_environment() -> int:
    """Number of processes that torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if all(name in os.environ for name in _VARIABLES) else 1


class TorchGroup:
    """All processes of ``torch.distributed``'s default group; it is made unless the program has made it.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        stopping: whether this process wants training to end.
        stopped: whether one of them wanted it before the latest step.

    Raises:
        FqtError: FQT604 if the processes cannot find each other.
    """

    def __init__(self) -> None:
        watch = None
        if not dist.is_initialized():
            if missing := [name for name in _VARIABLES if name not in os.environ]:
                raise FqtError(
                    f"{missing[0]} is not set", code="FQT604", hint="start with torchrun --nproc-per-node 2 ..."
                )
            try:
                with _ended_by_sigterm():
                    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
                    store = _store_of_this_start(rank)
                    watch = Watch(rank, size, _number_of_start())  # one that ends before the others find it is noticed
                    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_SLOWEST)
            except (RuntimeError, ValueError) as error:
                if watch is not None:
                    watch.close(f"cannot start: {error}")
                raise FqtError(f"torch.distributed cannot start: {error}", code="FQT604") from None
        if dist.get_backend() not in _BACKENDS and "cpu:" not in dist.get_backend_config():
            raise FqtError(
                f"torch.distributed was started with {dist.get_backend()}, which moves no data of the CPU",
                code="FQT604",
                hint="init_process_group('gloo'), or 'cpu:gloo,cuda:nccl'",
            )
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.stopping = self.stopped = False
        self._exchange: GradientSum | CodeSum | None = None
        self._watch = watch or Watch(self.rank, self.size, _number_of_start())
        atexit.register(self._watch.close)

    @property
    def sent_bytes(self) -> float:
        """Bytes of gradients and statistics that this process has sent."""
        return 0 if self._exchange is None else self._exchange.sent_bytes

    def exchange(self, wire: str, library: Library) -> Exchange:
        """An exchange of gradients: ``fp32`` or ``4-bit``; the library that computes them writes and reads codes."""
        watch = self._watch.check
        if wire == "4-bit":
            self._exchange = CodeSum(watch, self.size, self.rank, library.channel_codes())
        else:
            self._exchange = GradientSum(watch, self.size, self.rank)
        return self._exchange

    def check_same(self, what: str, digest: str) -> None:
        """FQT602 unless every process calls this with the same ``digest``; ``what`` names it."""
        own = torch.frombuffer(bytearray(hashlib.sha256(digest.encode()).digest()), dtype=torch.uint8)
        all_of_them = [torch.empty_like(own) for _ in range(self.size)]
        self._run(dist.all_gather, all_of_them, own)
        if others := [rank for rank, theirs in enumerate(all_of_them) if not torch.equal(theirs, all_of_them[0])]:
            raise FqtError(
                f"{what} of process {others[0]} is not that of process 0",
                code="FQT602",
                hint="start all processes with the same artifact, options and data",
            )

    def share_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Overwrite the arrays by those of process 0."""
        for array in state.values():
            self._run(dist.broadcast, torch.from_numpy(array.reshape(-1)), 0)

    def share_text(self, text: str) -> str:
        """The text of process 0."""
        content = text.encode() if self.rank == 0 else b""
        length = torch.tensor(len(content))
        self._run(dist.broadcast, length, 0)
        shared = torch.zeros(max(1, int(length)), dtype=torch.uint8)
        shared[: len(content)] = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)[: len(content)]
        self._run(dist.broadcast, shared, 0)
        return bytes(shared.numpy()[: int(length)]).decode()

    def average(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Overwrite float arrays by their means over all processes."""
        if not arrays:
            return
        flat = torch.from_numpy(np.concatenate([array.reshape(-1) for array in arrays.values()]) / self.size)
        self._run(dist.all_reduce, flat)
        position = 0
        for array in arrays.values():
            array[...] = flat[position : position + array.size].numpy().reshape(array.shape)
            position += array.size

    def mean_loss(self, loss: float) -> float:
        """The mean of the loss over all processes; also settles ``stopped``."""
        values = torch.tensor([loss / self.size, float(self.stopping)], dtype=torch.float64)
        self._run(dist.all_reduce, values)
        self.stopped = bool(values[1] > 0)
        return float(values[0])

    def close(self, failure: str | None = None) -> None:
        """Leave the group; the others end with ``failure`` if there is one."""
        atexit.unregister(self._watch.close)
        self._watch.close(failure)
        if failure is None:
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

    def _run(self, collective: Any, *arguments: Any) -> None:
        """Run a collective to its end; FQT603 if a process has ended."""
        self._watch.check()
        try:
            work = collective(*arguments, async_op=True)
        except RuntimeError as error:
            raise lost(error) from None
        wait_for(work, self._watch.check)


def _store_of_this_start(rank: int) -> Any:
    """The store by which the processes find each other.

    torchrun keeps its store when it starts all processes again. With the names of the start before, a process would
    find the addresses of those that have ended.
    """
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    tcp: Any = dist.TCPStore  # type: ignore[attr-defined]
    store = tcp(host, port, is_master=hosts, timeout=_CONNECTING, multi_tenant=True)
    found: Any = dist.PrefixStore(f"fqt/group/{_number_of_start()}", store)  # type: ignore[attr-defined]
    return found


def _number_of_start() -> str:
    """How often torchrun has started all processes before."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Within this context SIGTERM ends the process at once: Python's handlers do not run while it connects."""
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@cache
def _only_group() -> TorchGroup:
    return TorchGroup()


def join_group() -> TorchGroup | None:
    """The group that torchrun has started this process in, always the same; None where it is alone."""
    return _only_group() if ranks_in_environment() > 1 or dist.is_initialized() else None
