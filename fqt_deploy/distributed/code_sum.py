"""Gradients summed up over all processes as 4-bit codes: an eighth of the bytes.

Each process owns an equal part of the channels of every gradient. It receives the codes of its part from all others,
adds them up in float32, and sends codes of the sum to all: as many messages, of an eighth of the size, as a ring sends.
Codes are rounded at random, without bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fqt_deploy.distributed.channel_codes import Draws, decode, encode, encoded_bytes
from fqt_deploy.distributed.gradient_sum import GradientSum
from fqt_deploy.distributed.waiting import lost, wait_for
from fqt_deploy.runtime.group import mixed_seed

SMALLEST = 4096
"""Elements of a gradient below which it travels in float32: its bytes do not count, its scales would."""


@dataclass
class _Coded:
    """One gradient on its way.

    Attributes:
        gradient: [rows, elements] float32, what is replaced.
        own: rows that this process owns.
        rows: rows that each process owns; the last ones may own fewer.
        received: codes of the own rows from every process, then of all rows.
        work: the collective; None when it is over.
        kept: what a collective reads, alive until it is over.
        summed: whether the codes of the sums are on their way.
    """

    gradient: NDArray[Any]
    own: slice
    rows: int
    received: Tensor
    work: Any
    kept: Tensor
    summed: bool = False


@dataclass
class CodeSum:
    """Sums up gradients as codes, one by one in the order in which backward computes them.

    Attributes:
        check: raises FQT603 if a process has ended.
        size: number of processes.
        rank: number of this one.
        sent_bytes: bytes that this process has sent.
    """

    check: Callable[[], None]
    size: int
    rank: int
    sent_bytes: float = 0
    _small: GradientSum = field(init=False)
    _coded: dict[int, _Coded] = field(default_factory=dict)
    _draws: Draws = field(init=False)

    def __post_init__(self) -> None:
        self._small = GradientSum(self.check, self.size, self.rank)
        self._draws = Draws(0)

    def begin(self, seed: int, step: int) -> None:
        """Forget the step before, and draw the numbers of this one."""
        self._coded.clear()
        self._draws = Draws(mixed_seed(seed, step))
        self._small.begin(seed, step)

    def share(self, number: Any) -> None:
        """Replace ``number`` by 1 / number of processes."""
        self._small.share(number)

    def start(self, index: int, gradient: Any) -> None:
        """Send the codes of ``gradient`` to those who own its rows; move on the one before it."""
        tensor = from_dlpack(gradient)
        if tensor.dim() < 2 or tensor.numel() < SMALLEST:
            self._small.start(index, gradient)
            self._count()
            return
        for earlier in self._coded.values():
            self._send_sums(earlier)
        array = tensor.view(tensor.shape[0], -1).numpy()
        rows = -(-array.shape[0] // self.size)
        parts = np.zeros((self.size, rows * encoded_bytes(array.shape[1])), np.uint8)
        for rank in range(self.size):
            part = array[rank * rows : (rank + 1) * rows]
            if rank != self.rank:
                encode(part, self._draws, parts[rank, : len(part) * encoded_bytes(array.shape[1])])
        sent, received = torch.from_numpy(parts), torch.empty(parts.shape, dtype=torch.uint8)
        work = self._run(dist.all_to_all_single, received, sent)
        self.sent_bytes += parts[0].nbytes * (self.size - 1)
        own = slice(self.rank * rows, min((self.rank + 1) * rows, array.shape[0]))
        self._coded[index] = _Coded(array, own, rows, received, work, sent)

    def finish(self, index: int) -> None:
        """Wait until gradient ``index`` is the sum."""
        if index not in self._coded:
            self._small.finish(index)
            self._count()
            return
        coded = self._coded[index]
        self._send_sums(coded)
        if coded.work is None:
            return
        wait_for(coded.work, self.check)
        coded.work = None
        width = encoded_bytes(coded.gradient.shape[1])
        for rank in range(self.size):
            part = coded.gradient[rank * coded.rows : (rank + 1) * coded.rows]
            decode(coded.received[rank].numpy()[: len(part) * width], part, add=False)

    def _send_sums(self, coded: _Coded) -> None:
        """Add up what has come for the own rows, and send codes of the sums; once."""
        if coded.summed:
            return
        coded.summed = True
        wait_for(coded.work, self.check)
        part, width = coded.gradient[coded.own], encoded_bytes(coded.gradient.shape[1])
        for rank in range(self.size):
            if rank != self.rank:
                decode(coded.received[rank].numpy()[: len(part) * width], part, add=True)
        codes = np.zeros(coded.rows * width, np.uint8)
        encode(part, self._draws, codes[: len(part) * width])
        sent = torch.from_numpy(codes)
        coded.kept = sent
        coded.work = self._run(dist.all_gather_single, coded.received.view(-1), sent)
        self.sent_bytes += codes.nbytes * (self.size - 1)

    def _count(self) -> None:
        self.sent_bytes += self._small.sent_bytes
        self._small.sent_bytes = 0

    def _run(self, collective: Any, *arguments: Any) -> Any:
        try:
            return collective(*arguments, async_op=True)
        except RuntimeError as error:
            self.check()
            raise lost(error) from None
