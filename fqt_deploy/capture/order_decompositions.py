"""Sorting and its relatives in simpler ops: an element's place is how many elements come before it.

Every pair of elements is compared, in one kernel that keeps none of the comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _precedes(a: Tensor, b: Tensor, descending: bool) -> Tensor:
    """Whether ``a`` comes before ``b``; NaN is larger than every number."""
    before = a > b if descending else a < b
    if not a.dtype.is_floating_point:
        return before
    unordered_a, unordered_b = a != a, b != b
    return before | (unordered_a & ~unordered_b if descending else unordered_b & ~unordered_a)


def _order(x: Tensor, dim: int, descending: bool) -> Tensor:
    """Where along ``dim`` the first, second, ... element in order is, int64; of equal ones the earlier first."""
    if x.dim() == 0:
        return torch.zeros((), dtype=torch.int64)
    last = (x.int() if x.dtype == torch.bool else x).movedim(dim, -1)
    other, own = last.unsqueeze(-2), last.unsqueeze(-1)
    places = torch.arange(x.shape[dim])
    earlier = places[None, :] < places[:, None]
    ahead = _precedes(other, own, descending) | (earlier & ~_precedes(own, other, descending))
    rank = ahead.sum(-1)
    order: Tensor = aten.scatter.src(torch.zeros_like(rank), -1, rank, places.expand(rank.shape))
    return order.movedim(-1, dim)


def _gathered(x: Tensor, dim: int, order: Tensor) -> Tensor:
    return x if x.dim() == 0 else x.gather(dim, order)


def _sort(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    order = _order(x, dim, descending)
    return _gathered(x, dim, order), order


def _sort_stable(
    x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    return _sort(x, dim, descending)


def _topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:
    order = _order(x, dim, largest)
    order = order if x.dim() == 0 else order.narrow(dim, 0, k)
    return _gathered(x, dim, order), order


def _kth(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    order = _order(x, dim, False)
    if x.dim() == 0:
        return x.clone(), order
    place = order.narrow(dim, k - 1, 1)
    value = x.gather(dim, place)
    return (value, place) if keepdim else (value.squeeze(dim), place.squeeze(dim))


def _median(x: Tensor, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower of two in the middle; where there is a NaN, the first one."""
    if x.dim() == 0:
        return _kth(x, 1, dim, keepdim)
    value, place = _kth(x, (x.shape[dim] + 1) // 2, dim, True)
    if x.dtype.is_floating_point:
        unordered = (x != x).int()
        place = torch.where(unordered.amax(dim, True) > 0, unordered.argmax(dim, True), place)
        value = x.gather(dim, place)
    return (value, place) if keepdim else (value.squeeze(dim), place.squeeze(dim))


def _median_of_all(x: Tensor) -> Tensor:
    return _median(x.reshape(-1))[0]


def _running_extreme(x: Tensor, dim: int, largest: bool) -> Any:
    """The extreme of all elements up to each, and where it is; of equal ones the last."""
    if x.dim() == 0 or x.dtype != torch.float32:
        return NotImplemented
    last, places = x.movedim(dim, -1), torch.arange(x.shape[dim])
    worst = -math.inf if largest else math.inf
    seen = torch.where(places[None, :] <= places[:, None], last.unsqueeze(-2), worst)
    value = seen.amax(-1) if largest else seen.amin(-1)
    backwards = seen.flip(-1)
    place = x.shape[dim] - 1 - (backwards.argmax(-1) if largest else backwards.argmin(-1))
    return value.movedim(-1, dim), place.movedim(-1, dim)


def _running_largest(x: Tensor, dim: int) -> Any:
    return _running_extreme(x, dim, True)


def _running_smallest(x: Tensor, dim: int) -> Any:
    return _running_extreme(x, dim, False)


def _bucketize(x: Tensor, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    below = boundaries <= x.unsqueeze(-1) if right else boundaries < x.unsqueeze(-1)
    return below.sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


def _searchsorted(
    sorted_sequence: Tensor, x: Tensor, *, out_int32: bool = False, right: bool = False, side: str | None = None,
    sorter: Tensor | None = None,
) -> Any:  # fmt: skip
    if sorter is not None:
        return NotImplemented
    if sorted_sequence.dim() > 1:
        sorted_sequence = sorted_sequence.unsqueeze(-2)
    return _bucketize(x, sorted_sequence, out_int32=out_int32, right=right or side == "right")


ORDER: dict[Any, Callable[..., Any]] = {
    aten.sort.default: _sort, aten.sort.stable: _sort_stable, aten.topk.default: _topk,
    aten.kthvalue.default: _kth, aten.median.dim: _median, aten.median.default: _median_of_all,
    aten.cummax.default: _running_largest, aten.cummin.default: _running_smallest,
    aten.bucketize.Tensor: _bucketize, aten.searchsorted.Tensor: _searchsorted,
}  # fmt: skip
"""By op."""
