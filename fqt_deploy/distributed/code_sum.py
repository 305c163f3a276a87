"""Gradients summed up over all processes as 4-bit codes: an eighth of the bytes.

Each process owns an equal part of the channels of every gradient. It receives the codes of its part from all others,
adds them up in float32, and sends codes of the sum to all: as many messages, of an eighth of the size, as a ring sends.
Codes are rounded at random, without bias.

Of a gradient of which a selection keeps few channels only the codes of these are sent, to all others at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from fqt_deploy.distributed.gradient_sum import GradientSum
from fqt_deploy.distributed.row_coding import CodedRows
from fqt_deploy.distributed.row_sum import RowSum, is_shorter
from fqt_deploy.distributed.waiting import lost, wait_for
from fqt_deploy.runtime.channel_codes import ChannelCodes, Draws, encoded_bytes
from fqt_deploy.runtime.group import mixed_seed

SMALLEST = 4096
"""Elements of a gradient below which it travels in float32: its bytes do not count, its scales would."""
BUCKET = 1 << 20
"""Elements that travel together at least: each message has a cost of its own, and later ones hide behind backward."""


class _Member:
    """One gradient of a bucket.

    Attributes:
        gradient: [rows, elements] float32, what is replaced.
        begin: first byte of its codes among those of a process.
        rows: rows that each process owns; the last ones may own fewer.
    """

    def __init__(self, gradient: NDArray[Any], begin: int, size: int) -> None:
        rows, elements = gradient.shape
        self.gradient, self.begin = gradient, begin
        self.rows: int = -(-rows // size)
        self._width = encoded_bytes(elements)

    @property
    def end(self) -> int:
        """The byte behind the codes of as many rows as a process may own."""
        return self.begin + self.rows * self._width

    def part(self, rank: int) -> NDArray[Any]:
        """The rows that process ``rank`` owns."""
        return self.gradient[rank * self.rows : (rank + 1) * self.rows]

    def codes(self, of: NDArray[Any], rank: int) -> NDArray[Any]:
        """The codes of these rows in ``of``, which are those of one process."""
        return of[self.begin : self.begin + len(self.part(rank)) * self._width]


class _Buffers:
    """Memory for the codes of a bucket, kept for all steps; what no channel fills stays zero.

    Attributes:
        sent: codes for each of the others.
        received: codes of the own rows from every process, then of all rows.
        sums: codes of the own rows' sums.
    """

    def __init__(self, size: int, codes: int) -> None:
        self.sent, self.received = (np.zeros((size, codes), np.uint8) for _ in range(2))
        self.sums = np.zeros(codes, np.uint8)


@dataclass
class _Bucket:
    """Gradients that travel together.

    Attributes:
        number: its place among the buckets of the step.
        members: the gradients.
        buffers: their codes; None until they leave.
        work: the collective; None when it is over.
        summed: whether the codes of the sums are on their way.
        done: whether the gradients are the sums.
    """

    number: int
    members: list[_Member] = field(default_factory=list)
    buffers: _Buffers | None = None
    work: Any = None
    summed: bool = False
    done: bool = False

    @property
    def elements(self) -> int:
        """Elements of all gradients."""
        return sum(member.gradient.size for member in self.members)


@dataclass
class CodeSum:
    """Sums up gradients as codes, in buckets in the order in which backward computes them.

    Each bucket takes two messages. The second one of a bucket leaves when the first one of the bucket behind it has
    left: until then the codes of the others have come.

    Attributes:
        check: raises FQT603 if a process has ended.
        size: number of processes.
        rank: number of this one.
        channel_codes: writes and reads codes.
        sent_bytes: bytes that this process has sent.
    """

    check: Callable[[], None]
    size: int
    rank: int
    channel_codes: ChannelCodes
    sent_bytes: float = 0
    _small: GradientSum = field(init=False)
    _rows: RowSum = field(init=False)
    _coding: CodedRows = field(init=False)
    _bucket_of: dict[int, _Bucket] = field(default_factory=dict)
    _buckets: list[_Bucket] = field(default_factory=list)
    _buffers: list[_Buffers] = field(default_factory=list)
    _draws: Draws = field(init=False)

    def __post_init__(self) -> None:
        self._small = GradientSum(self.check, self.size, self.rank)
        self._coding = CodedRows(self.channel_codes)
        self._rows = RowSum(self.check, self.size, self.rank, self._coding)
        self._draws = Draws(0)

    def begin(self, seed: int, step: int) -> None:
        """Forget the step before, and draw the numbers of this one."""
        self._bucket_of.clear()
        self._buckets.clear()
        self._draws = self._coding.draws = Draws(mixed_seed(seed, step))
        self._small.begin(seed, step)
        self._rows.begin()

    def share(self, number: Any) -> None:
        """Replace ``number`` by 1 / number of processes."""
        self._small.share(number)

    def start(self, index: int, gradient: Any, kept: Any = None) -> None:
        """Note ``gradient`` for a bucket; a full one leaves, and then the sums of the one before it."""
        tensor = from_dlpack(gradient)
        if tensor.dim() < 2 or tensor.numel() < SMALLEST:
            self._small.start(index, gradient, kept)
            self._count(self._small)
            return
        if kept is not None and is_shorter(tensor.shape[0], len(numbers := from_dlpack(kept)), self.size):
            self._rows.start(index, tensor, numbers)
            self._count(self._rows)
            return
        if not self._buckets or self._buckets[-1].buffers is not None:
            self._buckets.append(_Bucket(len(self._buckets)))
        bucket = self._bucket_of[index] = self._buckets[-1]
        begin = bucket.members[-1].end if bucket.members else 0
        bucket.members.append(_Member(tensor.view(tensor.shape[0], -1).numpy(), begin, self.size))
        if bucket.elements >= BUCKET:
            self._send_codes(bucket)
            for earlier in self._buckets[:-1]:
                self._send_sums(earlier)

    def finish(self, index: int) -> None:
        """Wait until gradient ``index`` is the sum."""
        self._flush()
        if self._rows.finish(index):
            return
        if index not in self._bucket_of:
            self._small.finish(index)
            return
        bucket = self._bucket_of[index]
        for earlier in self._buckets[: bucket.number + 2]:  # the next one's travel while this one's are read
            self._send_sums(earlier)
        if bucket.done:
            return
        bucket.done = True
        wait_for(bucket.work, self.check)
        assert bucket.buffers is not None
        for member in bucket.members:
            for rank, codes in enumerate(bucket.buffers.received):
                self.channel_codes.decode(member.codes(codes, rank), member.part(rank), add=False)

    def statistics(self, rows: int, sums: Sequence[Any], moments: Sequence[Any]) -> None:
        """Replace statistics of each channel by those of all processes, as they are, and wait for it."""
        self._small.statistics(rows, sums, moments)
        self._count(self._small)

    def _flush(self) -> None:
        """Send what waits for company: who waits for one gradient has begun the exchange of all."""
        if self._buckets:
            self._send_codes(self._buckets[-1])
        self._rows.flush()
        self._count(self._rows)
        self._small.flush()
        self._count(self._small)

    def _send_codes(self, bucket: _Bucket) -> None:
        """Send codes of all gradients to those who own their rows; once."""
        if bucket.buffers is not None:
            return
        number = bucket.number
        if number == len(self._buffers):  # in the first step; later ones have the same buckets
            self._buffers.append(_Buffers(self.size, bucket.members[-1].end))
        buffers = bucket.buffers = self._buffers[number]
        for member in bucket.members:
            for rank, codes in enumerate(buffers.sent):
                if rank != self.rank:
                    self.channel_codes.encode(member.part(rank), self._draws.key(), member.codes(codes, rank))
        received, sent = torch.from_numpy(buffers.received), torch.from_numpy(buffers.sent)
        bucket.work = self._run(dist.all_to_all_single, received, sent)
        self.sent_bytes += buffers.sums.nbytes * (self.size - 1)

    def _send_sums(self, bucket: _Bucket) -> None:
        """Add up what has come for the own rows, and send codes of the sums; once."""
        if bucket.summed:
            return
        bucket.summed = True
        wait_for(bucket.work, self.check)
        buffers = bucket.buffers
        assert buffers is not None
        for member in bucket.members:
            part = member.part(self.rank)
            for rank, codes in enumerate(buffers.received):
                if rank != self.rank:
                    self.channel_codes.decode(member.codes(codes, self.rank), part, add=True)
            self.channel_codes.encode(part, self._draws.key(), member.codes(buffers.sums, self.rank))
        received, sums = torch.from_numpy(buffers.received.reshape(-1)), torch.from_numpy(buffers.sums)
        bucket.work = self._run(dist.all_gather_single, received, sums)
        self.sent_bytes += buffers.sums.nbytes * (self.size - 1)

    def _count(self, part: GradientSum | RowSum) -> None:
        self.sent_bytes += part.sent_bytes
        part.sent_bytes = 0

    def _run(self, collective: Any, *arguments: Any) -> Any:
        try:
            return collective(*arguments, async_op=True)
        except RuntimeError as error:
            self.check()
            raise lost(error) from None
