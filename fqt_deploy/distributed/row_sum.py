"""Sums of gradients that have few rows: each process sends the rows that it kept, and their numbers, to all others.

Every process adds the rows of all of them up in the order of their ranks, so that all have the same bits; gradients
have no negative zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fqt_deploy.distributed.waiting import lost, wait_for

BUCKET_BYTES = 1 << 20
"""Rows of gradients travel together until they have so many bytes."""


def is_shorter(rows: int, kept: int, processes: int) -> bool:
    """Whether a process sends fewer bytes with ``kept`` of ``rows`` rows to every other one than all rows in a ring."""
    return kept * processes < 2 * rows


@dataclass
class _Member:
    """One gradient of a bucket.

    Attributes:
        index: its number in the step.
        gradient: [O, J] float32, what is replaced.
        kept: [K] int32, its rows that are not zero.
    """

    index: int
    gradient: Tensor
    kept: Tensor

    @property
    def elements(self) -> int:
        """Float32 or int32 that it takes of a message."""
        return self.kept.numel() * (1 + self.gradient.shape[1])

    def parts(self, message: Tensor, begin: int) -> tuple[Tensor, Tensor]:
        """Numbers [K] int32 of rows, and the rows [K, J] float32, in a message where this gradient begins."""
        count = self.kept.numel()
        rows = message[begin + count : begin + self.elements].view(count, -1)
        return message[begin : begin + count].view(torch.int32), rows


@dataclass
class _Bucket:
    """Gradients that travel together.

    Attributes:
        members: the gradients.
        own: [size] float32, what this process sends.
        received: [processes - 1, size] float32, what the others send.
        work: the collective; None when the gradients are the sums.
    """

    members: list[_Member]
    own: Tensor
    received: Tensor
    work: Any


@dataclass
class RowSum:
    """Sums up gradients by their kept rows, in the order in which backward computes them.

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
    _waiting: list[_Member] = field(default_factory=list)
    _buckets: dict[int, _Bucket] = field(default_factory=dict)
    _memory: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _left: int = 0

    def begin(self) -> None:
        """Forget the step before."""
        self._waiting.clear()
        self._buckets.clear()
        self._left = 0

    def start(self, index: int, gradient: Tensor, kept: Tensor) -> None:
        """Note the rows ``kept`` of ``gradient`` for a message; a full one leaves."""
        self._waiting.append(_Member(index, gradient, kept.clone()))
        if 4 * sum(member.elements for member in self._waiting) >= BUCKET_BYTES:
            self._send()

    def finish(self, index: int) -> bool:
        """Wait until gradient ``index`` is the sum; whether it is one of these."""
        if any(member.index == index for member in self._waiting):
            self._send()
        bucket = self._buckets.get(index)
        if bucket is None:
            return False
        if bucket.work is not None:
            wait_for(bucket.work, self.check)
            bucket.work = None
            self._add_up(bucket)
        return True

    def _send(self) -> None:
        members, self._waiting = self._waiting, []
        own, received = self._arrays(sum(member.elements for member in members))
        begin = 0
        for member in members:
            numbers, rows = member.parts(own[0], begin)
            numbers.copy_(member.kept)
            torch.index_select(member.gradient, 0, member.kept, out=rows)
            begin += member.elements
        own[1:] = own[0]
        splits = [0 if rank == self.rank else own.shape[1] for rank in range(self.size)]
        try:
            work = dist.all_to_all_single(received.view(-1), own.view(-1), splits, splits, async_op=True)
        except RuntimeError as error:
            self.check()
            raise lost(error) from None
        self.sent_bytes += own.nbytes
        bucket = _Bucket(members, own[0], received, work)
        self._buckets |= dict.fromkeys((member.index for member in members), bucket)

    def _arrays(self, elements: int) -> tuple[Tensor, Tensor]:
        """What is sent to the others and received from them, [processes - 1, elements] each, the same in all steps."""
        number, self._left = self._left, self._left + 1
        if number == len(self._memory):
            self._memory.append((torch.empty(0, 0), torch.empty(0, 0)))
        if self._memory[number][0].shape[1] != elements:
            shape = (self.size - 1, elements)
            self._memory[number] = (torch.zeros(shape), torch.zeros(shape))
        return self._memory[number]

    def _add_up(self, bucket: _Bucket) -> None:
        """Replace the gradients by the sums of all processes' rows, as if added from the first process to the last.

        The first two processes need not touch their own rows: either of the first two numbers may be added to the other.
        """
        others = bucket.received
        rebuilt = self.rank > 1
        messages = [*others[: self.rank], bucket.own, *others[self.rank :]] if rebuilt else others
        begin = 0
        for member in bucket.members:
            if rebuilt:
                member.gradient.index_fill_(0, member.kept.long(), 0)
            for message in messages:
                numbers, rows = member.parts(message, begin)
                member.gradient.index_add_(0, numbers, rows)
            begin += member.elements
