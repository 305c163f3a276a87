"""Compound ops in simpler ones, where PyTorch has no rule, or one that ends in what has no lowering."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _axes(x: Tensor, dim: int | Sequence[int] | None) -> list[int]:
    given = [dim] if isinstance(dim, int) else list(dim or range(x.dim()))
    return [d % x.dim() for d in given]


def _any(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    return (x if x.dtype == torch.bool else x != 0).float().amax(_axes(x, dim), keepdim) > 0


def _vector_norm(
    x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Any:
    if dtype not in (None, x.dtype):
        return NotImplemented
    axes, size = _axes(x, dim), x.abs()
    if math.isinf(ord):
        return size.amax(axes, keepdim) if ord > 0 else size.amin(axes, keepdim)
    if ord == 2:
        return (x * x).sum(axes, keepdim).sqrt()
    if ord == 1:
        return size.sum(axes, keepdim)
    return (size != 0).float().sum(axes, keepdim) if ord == 0 else (size**ord).sum(axes, keepdim) ** (1 / ord)


def _variance(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Tensor:
    axes = _axes(x, dim)
    count = math.prod(int(x.shape[axis]) for axis in axes)
    centred = x - x.mean(axes, True)
    variance = (centred * centred).mean(axes, keepdim)
    left = count - (1 if correction is None else correction)
    return variance * (count / left if left > 0 else math.nan) if left != count else variance


def _variance_unbiased(x: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False) -> Tensor:
    return _variance(x, dim, correction=int(unbiased), keepdim=keepdim)


def _largest(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return x.amax(dim, keepdim), x.argmax(dim, keepdim)


def _smallest(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return x.amin(dim, keepdim), x.argmin(dim, keepdim)


def _clamp(x: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor:
    x = x if min is None else torch.maximum(x, min)
    return x if max is None else torch.minimum(x, max)


def _empty_permuted(
    size: list[int], physical_layout: list[int], dtype: Any = None, layout: Any = None, device: Any = None,
    pin_memory: Any = None,
) -> Tensor:  # fmt: skip
    """Values that mean nothing are zeros."""
    return torch.zeros([size[d] for d in physical_layout], dtype=dtype).permute(
        [physical_layout.index(d) for d in range(len(size))]
    )


def _new_empty_strided(
    x: Tensor, size: list[int], stride: list[int], dtype: Any = None, layout: Any = None, device: Any = None,
    pin_memory: Any = None,
) -> Tensor:  # fmt: skip
    order = sorted(range(len(size)), key=lambda d: (-stride[d], d))
    return _empty_permuted(size, order, dtype or x.dtype)


def _storage_order(size: Sequence[int], stride: Sequence[int]) -> list[int] | None:
    """The axes by stride, the largest first; None if elements leave gaps or overlap."""
    order = sorted(range(len(size)), key=lambda axis: (-int(stride[axis]), int(size[axis]) > 1))
    expected = 1
    for axis in reversed(order):
        if size[axis] != 1 and stride[axis] != expected:
            return None
        expected *= int(size[axis])
    return order


def _restrided(
    x: Tensor, old: tuple[Sequence[int], Sequence[int]], new: tuple[Sequence[int], Sequence[int]]
) -> Tensor | None:
    """What lies where ``x`` of shape and strides ``old`` lies, seen with those of ``new``; None if that is not all."""
    before, after = _storage_order(*old), _storage_order(*new)
    if before is None or after is None or math.prod(old[0]) != math.prod(new[0]):
        return None
    seen = x.permute(before).reshape([new[0][axis] for axis in after])
    return seen.permute([after.index(axis) for axis in range(len(after))])


def _as_strided(x: Tensor, size: list[int], stride: list[int], storage_offset: int | None = None) -> Any:
    """A strided view of all elements, as those of tensors with another memory format."""
    whole = storage_offset in (None, x.storage_offset())
    seen = _restrided(x, (x.shape, x.stride()), (size, stride)) if whole else None
    return NotImplemented if seen is None else seen


def _as_strided_scatter(
    x: Tensor, src: Tensor, size: list[int], stride: list[int], storage_offset: int | None = None
) -> Any:
    """Written through a view of all elements, nothing is left of what was there."""
    whole = storage_offset in (None, x.storage_offset())
    written = _restrided(src, (size, stride), (x.shape, x.stride())) if whole else None
    return NotImplemented if written is None else written


def _index(x: Tensor, indices: list[Tensor | None]) -> Any:
    """Indexed axes side by side; PyTorch puts the axes of sources first, where they were not."""
    order, own = _side_by_side(x, indices)
    return NotImplemented if order is None else aten.index.Tensor(x.permute(order), own)


def _index_put(x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False) -> Any:
    order, own = _side_by_side(x, indices)
    if order is None:
        return NotImplemented
    inverse = [order.index(axis) for axis in range(len(order))]
    return aten.index_put.default(x.permute(order), own, values, accumulate).permute(inverse)


def _side_by_side(x: Tensor, indices: list[Tensor | None]) -> tuple[list[int] | None, list[Tensor | None]]:
    """The axes of ``x`` with those that are indexed first, and their indices; None where they are neighbours anyway."""
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    if axes == list(range(axes[0], axes[-1] + 1)) or any(i.dtype == torch.bool for i in indices if i is not None):
        return None, []
    return [*axes, *[axis for axis in range(x.dim()) if axis not in axes]], [indices[axis] for axis in axes]


def _unsafe_index(x: Tensor, indices: list[Tensor | None]) -> Any:
    return aten.index.Tensor(x, indices)


def _unsafe_index_put(x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False) -> Any:
    return aten.index_put.default(x, indices, values, accumulate)


def _scatter_value(x: Tensor, dim: int, index: Tensor, value: Any) -> Any:
    """One place for each row has a kernel of its own."""
    if index.shape[dim] == 1:
        return NotImplemented
    return aten.scatter.src(x, dim, index, torch.full(index.shape, value, dtype=x.dtype))


OWN: dict[Any, Callable[..., Any]] = {
    aten.any.dim: _any,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.var.correction: _variance, aten.var.dim: _variance_unbiased,
    aten.max.dim: _largest, aten.min.dim: _smallest, aten.clamp.Tensor: _clamp,
    aten.empty_permuted.default: _empty_permuted, aten.new_empty_strided.default: _new_empty_strided,
    aten.as_strided.default: _as_strided, aten.as_strided_scatter.default: _as_strided_scatter,
    aten.index.Tensor: _index, aten.index_put.default: _index_put,
    aten._unsafe_index.Tensor: _unsafe_index, aten._unsafe_index_put.default: _unsafe_index_put,
    aten.scatter.value: _scatter_value,
    aten.exp2.default: lambda x: torch.exp(x * math.log(2)), aten.log2.default: lambda x: torch.log(x) / math.log(2),
    aten.log10.default: lambda x: torch.log(x) / math.log(10), aten.isinf.default: lambda x: x.abs() == math.inf,
    aten.sinh.default: lambda x: (torch.expm1(x) - torch.expm1(-x)) / 2,
    aten.cosh.default: lambda x: (torch.exp(x) + torch.exp(-x)) / 2,
}  # fmt: skip
"""By op; a rule that gives ``NotImplemented`` leaves the call as it is."""
