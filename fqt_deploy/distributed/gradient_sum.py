"""Gradients summed up over all processes as they are, in float32.

Of a gradient of which a selection keeps few channels only these travel, where that is less than a ring sends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fqt_deploy.distributed.row_coding import PlainRows
from fqt_deploy.distributed.row_sum import BUCKET_BYTES, RowSum, is_shorter
from fqt_deploy.distributed.statistics import exchange_statistics
from fqt_deploy.distributed.waiting import lost, wait_for


@dataclass
class _Bucket:
    """Gradients that travel together; one of the size of a bucket travels by itself and in place.

    Attributes:
        gradients: flat views of them.
        flat: what travels: the only gradient itself, or a copy of all.
        work: the collective; None once it is over.
    """

    gradients: list[Tensor]
    flat: Tensor
    work: Any


@dataclass
class GradientSum:
    """Sums up gradients in buckets, in the order in which backward computes them.

    Attributes:
        check: raises FQT603 if a process has ended.
        size: number of processes.
        rank: number of this one.
        sent_bytes: bytes that this process has sent, as a ring sends them.
    """

    check: Callable[[], None]
    size: int
    rank: int
    sent_bytes: float = 0
    _waiting: list[tuple[int, Tensor]] = field(default_factory=list)
    _buckets: dict[int, _Bucket] = field(default_factory=dict)
    _rows: RowSum = field(init=False)

    def __post_init__(self) -> None:
        self._rows = RowSum(self.check, self.size, self.rank, PlainRows())

    def begin(self, seed: int, step: int) -> None:
        """Forget the step before; nothing here is random."""
        self._waiting.clear()
        self._buckets.clear()
        self._rows.begin()

    def share(self, number: Any) -> None:
        """Replace ``number`` by 1 / number of processes."""
        from_dlpack(number).fill_(1 / self.size)

    def start(self, index: int, gradient: Any, kept: Any = None) -> None:
        """Begin to sum up ``gradient``, or note it, or its rows ``kept``, for the bucket that it travels in."""
        tensor = from_dlpack(gradient)
        if kept is not None and is_shorter(tensor.shape[0], len(numbers := from_dlpack(kept)), self.size):
            self._rows.start(index, tensor, numbers)
            self._count_rows()
            return
        flat = tensor.view(-1)
        if flat.nbytes >= BUCKET_BYTES:
            self._launch([(index, flat)])
            return
        self._waiting.append((index, flat))
        if sum(tensor.nbytes for _, tensor in self._waiting) >= BUCKET_BYTES:
            self._launch_waiting()

    def finish(self, index: int) -> None:
        """Wait until gradient ``index`` is the sum."""
        self.flush()
        if self._rows.finish(index):
            return
        bucket = self._buckets[index]
        if bucket.work is None:
            return
        wait_for(bucket.work, self.check)
        bucket.work = None
        if len(bucket.gradients) > 1:
            position = 0
            for gradient in bucket.gradients:
                gradient.copy_(bucket.flat[position : position + gradient.numel()])
                position += gradient.numel()

    def flush(self) -> None:
        """Send what waits for company: who waits for one gradient has begun the exchange of all."""
        if self._waiting:
            self._launch_waiting()
        self._rows.flush()
        self._count_rows()

    def statistics(self, rows: int, sums: Sequence[Any], moments: Sequence[Any]) -> None:
        """Replace statistics of each channel by those of all processes, and wait for it."""
        own, of_rows = ([from_dlpack(array) for array in part] for part in (sums, moments))
        size = exchange_statistics(rows, own, of_rows, lambda message: wait_for(self._sum(message), self.check))
        self._count(size)

    def _launch_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._launch(waiting)

    def _launch(self, members: list[tuple[int, Tensor]]) -> None:
        gradients = [gradient for _, gradient in members]
        flat = gradients[0] if len(gradients) == 1 else torch.cat(gradients)
        bucket = _Bucket(gradients, flat, self._sum(flat))
        self._count(flat.nbytes)
        self._buckets |= dict.fromkeys((index for index, _ in members), bucket)

    def _sum(self, flat: Tensor) -> Any:
        """The collective that replaces ``flat`` by its sum over all processes."""
        try:
            return dist.all_reduce(flat, async_op=True)
        except RuntimeError as error:
            self.check()
            raise lost(error) from None

    def _count_rows(self) -> None:
        self.sent_bytes += self._rows.sent_bytes
        self._rows.sent_bytes = 0

    def _count(self, size: int) -> None:
        """Count a message of ``size`` bytes, as a ring sends it."""
        self.sent_bytes += 2 * (self.size - 1) / self.size * size
