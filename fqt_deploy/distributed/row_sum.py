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

from fqt_deploy.distributed.row_coding import RowCoding
from fqt_deploy.distributed.waiting import lost, wait_for

BUCKET_BYTES = 1 << 20
"""Gradients of fewer bytes travel together until they have so many."""


def is_shorter(rows: int, kept: int, processes: int) -> bool:
    """Whether a process sends fewer bytes with ``kept`` of ``rows`` rows to every other one than all rows in a ring.

    A process that is a group by itself sends nothing either way.
    """
    return processes > 1 and kept * processes < 2 * rows


@dataclass
class _Member:
    """One gradient of a bucket.

    Attributes:
        gradient: [O, J] float32, what is replaced.
        kept: [K] int32, its rows that are not zero.
        begin: its first byte in a message; the numbers of the rows come first.
        row_bytes: bytes of a row.
    """

    gradient: Tensor
    kept: Tensor
    begin: int
    row_bytes: int

    @property
    def end(self) -> int:
        """The byte behind it, a multiple of 4."""
        size = self.kept.numel() * (4 + self.row_bytes)
        return self.begin + -(-size // 4) * 4

    def numbers(self, message: Tensor) -> Tensor:
        """The numbers of the rows in ``message``, [K] int32."""
        return message[self.begin : self.begin + 4 * self.kept.numel()].view(torch.int32)

    def rows(self, message: Tensor) -> Tensor:
        """The rows in ``message``, [K * row_bytes] uint8."""
        begin = self.begin + 4 * self.kept.numel()
        return message[begin : begin + self.kept.numel() * self.row_bytes]


@dataclass
class _Bucket:
    """Gradients that travel together.

    Attributes:
        members: the gradients.
        own: [bytes] uint8, what this process sends to each other one.
        received: [processes - 1, bytes] uint8, what these send.
        work: the collective; None before the rows leave, and when the gradients are the sums.
        done: whether the gradients are the sums.
    """

    members: list[_Member] = field(default_factory=list)
    own: Tensor | None = None
    received: Tensor | None = None
    work: Any = None
    done: bool = False


@dataclass
class RowSum:
    """Sums up gradients by their kept rows, in the order in which backward computes them.

    Attributes:
        check: raises FQT603 if a process has ended.
        size: number of processes.
        rank: number of this one.
        coding: how rows are written.
        sent_bytes: bytes that this process has sent.
    """

    check: Callable[[], None]
    size: int
    rank: int
    coding: RowCoding
    sent_bytes: float = 0
    _buckets: list[_Bucket] = field(default_factory=list)
    _bucket_of: dict[int, _Bucket] = field(default_factory=dict)
    _memory: list[Tensor] = field(default_factory=list)

    def begin(self) -> None:
        """Forget the step before."""
        self._buckets.clear()
        self._bucket_of.clear()

    def start(self, index: int, gradient: Tensor, kept: Tensor) -> None:
        """Note the rows ``kept`` of gradient ``index`` for a message; a full one leaves."""
        if not self._buckets or self._buckets[-1].own is not None:
            self._buckets.append(_Bucket())
        bucket = self._bucket_of[index] = self._buckets[-1]
        begin = bucket.members[-1].end if bucket.members else 0
        bucket.members.append(_Member(gradient, kept.clone(), begin, self.coding.row_bytes(gradient.shape[1])))
        if bucket.members[-1].end >= BUCKET_BYTES:
            self._send(bucket)

    def finish(self, index: int) -> bool:
        """Wait until gradient ``index``, which has been sent, is the sum; whether it is one of these."""
        bucket = self._bucket_of.get(index)
        if bucket is None:
            return False
        if not bucket.done:
            bucket.done = True
            wait_for(bucket.work, self.check)
            self._add_up(bucket)
        return True

    def flush(self) -> None:
        """Send what waits for company."""
        if self._buckets:
            self._send(self._buckets[-1])

    def _send(self, bucket: _Bucket) -> None:
        """Send the kept rows of all gradients to all others; once."""
        if bucket.own is not None:
            return
        sent, bucket.received = self._messages(len(self._buckets) - 1, bucket.members[-1].end)
        bucket.own = sent[0]
        for member in bucket.members:
            member.numbers(bucket.own).copy_(member.kept)
            self.coding.write(member.gradient, member.kept, member.rows(bucket.own))
        sent[1:] = bucket.own
        splits = [0 if rank == self.rank else bucket.own.numel() for rank in range(self.size)]
        try:
            bucket.work = dist.all_to_all_single(bucket.received.view(-1), sent.view(-1), splits, splits, async_op=True)
        except RuntimeError as error:
            self.check()
            raise lost(error) from None
        self.sent_bytes += sent.nbytes

    def _messages(self, number: int, size: int) -> tuple[Tensor, Tensor]:
        """What bucket ``number`` sends and receives, [processes - 1, size] uint8 each: the same memory in all steps."""
        shape = (2, self.size - 1, size)
        if number == len(self._memory):
            self._memory.append(torch.zeros(shape, dtype=torch.uint8))
        if self._memory[number].shape != shape:  # of another variant of the step
            self._memory[number] = torch.zeros(shape, dtype=torch.uint8)
        sent, received = self._memory[number]
        return sent, received

    def _add_up(self, bucket: _Bucket) -> None:
        """Replace the gradients by the sums of all processes' rows, as if added from the first process to the last.

        The first two processes need not move their own rows: either of the first two numbers may be added to the other.
        """
        assert bucket.own is not None
        assert bucket.received is not None
        before, behind = bucket.received[: self.rank], bucket.received[self.rank :]
        for member in bucket.members:
            messages = [*before, *behind]
            if self.rank > 1:
                member.gradient.index_fill_(0, member.kept.long(), 0)
                messages = [*before, bucket.own, *behind]
            elif not self.coding.exact:
                member.gradient.index_copy_(0, member.kept.long(), self._rows(member, bucket.own))
            for message in messages:
                member.gradient.index_add_(0, member.numbers(message), self._rows(member, message))

    def _rows(self, member: _Member, message: Tensor) -> Tensor:
        """The rows of a gradient that came in ``message``, [K, J] float32."""
        return self.coding.read(member.rows(message), member.kept.numel(), member.gradient.shape[1])
