"""Work that another process does in the meantime: a fork of this one, which has all modules and models loaded.

A fork has of all threads the one that forked. The threads by which PyTorch computes are missing in it, and it computes
on one; that is how PyTorch's ``DataLoader`` makes its processes, too. A lock that another thread held stays locked. So
work is begun this way only if it can be done again: what comes back from a process that fails, or takes much longer
than expected, is nothing, and whoever asked does the work in its own process, with the errors that belong to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import os
import pickle
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from fqt_deploy.core.thread_output import held_back
from fqt_deploy.core.watched_files import read_elsewhere, watched_files

_PATIENCE = 30.0
"""Seconds that the work may take longer than what was done in the meantime, and ``_TIMES`` that again."""
_TIMES = 3
_SIGNAL_AT_END_OF_PARENT = 1
"""``PR_SET_PDEATHSIG`` of ``linux/prctl.h``."""


@dataclass(frozen=True)
class Forked:
    """Work that was begun in a process of its own.

    Attributes:
        process: its number.
        pipe: file descriptor of what it returns.
        begun: when, in seconds of ``time.monotonic``.
    """

    process: int
    pipe: int
    begun: float

    def result(self) -> bytes | None:
        """What the work returned; None if it failed. What it printed is printed, what it read counts as read here."""
        now = time.monotonic()
        content = self._received(now + _PATIENCE + _TIMES * (now - self.begun))
        if not content:
            return None
        returned, printed, errors, read = pickle.loads(content)
        for stream, text in ((sys.stdout, printed), (sys.stderr, errors)):
            if stream is not None:  # as in a program that was started without it
                stream.write(text)
        read_elsewhere(read)
        assert isinstance(returned, bytes)
        return returned

    def _received(self, latest: float) -> bytes:
        content = bytearray()
        while select.select([self.pipe], [], [], max(0.0, latest - time.monotonic()))[0]:
            part = os.read(self.pipe, 1 << 20)
            if not part:
                return bytes(content)
            content += part
        return b""

    def end(self) -> None:
        """End the process, whatever it does."""
        os.close(self.pipe)
        with contextlib.suppress(OSError):
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)


@contextlib.contextmanager
def forked(work: Callable[[], bytes]) -> Iterator[Forked | None]:
    """Do ``work`` in a fork of this process while the block runs; None where that is not safe, or gains nothing."""
    begun = _fork(work) if _can_fork() else None
    try:
        yield begun
    finally:
        if begun is not None:
            begun.end()


def _can_fork() -> bool:
    """Whether a fork is safe and has a processor: other systems than Linux, and CUDA, do not survive it."""
    return sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1 and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


def _fork(work: Callable[[], bytes]) -> Forked | None:
    """Begin ``work`` in a fork; None if there cannot be one."""
    source, target = os.pipe()
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: see above
        try:
            process = os.fork()
        except OSError:  # too many processes, or too little memory for another one
            os.close(source)
            os.close(target)
            return None
    if process:
        os.close(target)
        return Forked(process, source, time.monotonic())
    status = 1
    try:
        ctypes.CDLL(None).prctl(_SIGNAL_AT_END_OF_PARENT, signal.SIGKILL)  # nobody else would end it
        if os.getppid() != parent:  # it ended before it could be told
            os._exit(status)
        os.close(source)
        with open(target, "wb") as pipe:
            pipe.write(_done(work))
        status = 0
    finally:  # neither the caller's handlers nor what is registered for the end of its process
        os._exit(status)


def _done(work: Callable[[], bytes]) -> bytes:
    """What ``Forked.result`` reads."""
    gc.disable()  # it would write to all memory that is shared with the other process
    torch.set_num_threads(1)
    loaded = set(sys.modules)
    printed, errors = io.StringIO(), io.StringIO()
    with held_back(stdout=printed, stderr=errors), watched_files() as opened:
        returned = work()
    files = (getattr(module, "__file__", None) for name, module in sys.modules.items() if name not in loaded)
    read = opened | {os.path.abspath(file) for file in files if file}
    return pickle.dumps((returned, printed.getvalue(), errors.getvalue(), read))
