"""Compound ops in simpler ones, where PyTorch has no rule, or one that ends in what has no lowering."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.capture.antialiased_decompositions import ANTIALIASED
from fqt_deploy.capture.elementwise_decompositions import ELEMENTWISE
from fqt_deploy.capture.order_decompositions import ORDER
from fqt_deploy.capture.place_decompositions import PLACES
from fqt_deploy.capture.random_decompositions import RANDOM

aten = torch.ops.aten


def _axes(x: Tensor, dim: int | Sequence[int] | None) -> list[int]:
    given = [dim] if isinstance(dim, int) else list(dim or range(x.dim()))
    return [d % x.dim() for d in given]


def _any(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    return (x if x.dtype == torch.bool else x != 0).float().amax(_axes(x, dim), keepdim) > 0


def _largest_of(x: Tensor, dim: Any = (), keepdim: bool = False) -> Any:
    """The maximum of booleans by way of numbers; of numbers there is an op."""
    return x.float().amax(dim, keepdim) > 0 if x.dtype == torch.bool else NotImplemented


def _smallest_of(x: Tensor, dim: Any = (), keepdim: bool = False) -> Any:
    return x.float().amin(dim, keepdim) > 0 if x.dtype == torch.bool else NotImplemented


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
    if x.dtype == torch.bool:
        value, place = _largest(x.int(), dim, keepdim)
        return value > 0, place
    return x.amax(dim, keepdim), x.argmax(dim, keepdim)


def _smallest(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    if x.dtype == torch.bool:
        value, place = _smallest(x.int(), dim, keepdim)
        return value > 0, place
    return x.amin(dim, keepdim), x.argmin(dim, keepdim)


def _largest_of_all(x: Tensor) -> Tensor:
    return x.int().amax() > 0 if x.dtype == torch.bool else x.amax()


def _smallest_of_all(x: Tensor) -> Tensor:
    return x.int().amin() > 0 if x.dtype == torch.bool else x.amin()


def _larger(x: Tensor, y: Tensor) -> Tensor:
    """The larger of two numbers; the other one, if one is NaN."""
    return torch.where((x >= y) | (y != y), x, y)


def _smaller(x: Tensor, y: Tensor) -> Tensor:
    return torch.where((x <= y) | (y != y), x, y)


def _distance(x: Tensor, y: Tensor, p: float = 2) -> Any:
    return _vector_norm(x - y, p)


def _clamp(x: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor:
    x = x if min is None else torch.maximum(x, min)
    return x if max is None else torch.minimum(x, max)


def _empty(
    size: list[int], dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None,
    memory_format: Any = None,
) -> Tensor:  # fmt: skip
    """Values that mean nothing are zeros: a part may be read before it is written, as circular padding does."""
    return torch.zeros(size, dtype=dtype)


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


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """The weight that ``g`` gives the lengths of, and the lengths of ``v``."""
    lengths = _lengths(v, dim)
    return v * (g / lengths), lengths


def _weight_norm_backward(
    grad_w: Tensor, saved_v: Tensor, saved_g: Tensor, saved_norms: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    along = (grad_w * saved_v).sum([axis for axis in range(saved_v.dim()) if axis != dim], True)
    across = grad_w - saved_v * (along / (saved_norms * saved_norms))
    return saved_g / saved_norms * across, along / saved_norms


def _lengths(v: Tensor, dim: int) -> Tensor:
    return (v * v).sum([axis for axis in range(v.dim()) if axis != dim], True).sqrt()


def _product(x: Tensor, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    """The last of the running products."""
    if x.dim() == 0 or x.dtype != torch.float32 or dtype not in (None, x.dtype) or x.shape[dim] == 0:
        return NotImplemented
    last = aten.cumprod.default(x, dim).narrow(dim, x.shape[dim] - 1, 1)
    return last if keepdim else last.squeeze(dim)


def _product_of_all(x: Tensor, *, dtype: torch.dtype | None = None) -> Any:
    return _product(x.reshape(-1), 0, dtype=dtype)


def _trilinear(
    i1: Tensor, i2: Tensor, i3: Tensor, expand1: list[int], expand2: list[int], expand3: list[int],
    sumdim: list[int], unroll_dim: int = 1,
) -> Tensor:  # fmt: skip
    """The product of three tensors that get new axes, summed over some."""
    factors = []
    for factor, new in zip((i1, i2, i3), (expand1, expand2, expand3), strict=True):
        for axis in sorted(new):
            factor = factor.unsqueeze(axis)
        factors.append(factor)
    product = factors[0] * factors[1] * factors[2]
    return product.sum(sumdim) if sumdim else product


def _distances(x1: Tensor, x2: Tensor, p: float, compute_mode: int | None) -> Any:
    """The distance of every row of ``x1`` from every row of ``x2``, from their differences."""
    return _vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


def _distances_backward(grad: Tensor, x1: Tensor, x2: Tensor, p: float, cdist: Tensor) -> Any:
    """The gradient of ``x1``; rows that are equal give none."""
    if p not in (1, 2):
        return NotImplemented
    difference = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    if p == 1:
        return (torch.sign(difference) * grad.unsqueeze(-1)).sum(-2)
    share = torch.where(cdist == 0, 0.0, grad / cdist)
    return (difference * share.unsqueeze(-1)).sum(-2)


def _scatter_reduce(x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True) -> Any:
    if reduce != "sum" or not include_self:
        return NotImplemented
    return aten.scatter_add.default(x, dim, index, src)


OWN: dict[Any, Callable[..., Any]] = {
    aten.any.dim: _any,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.var.correction: _variance, aten.var.dim: _variance_unbiased,
    aten.amax.default: _largest_of, aten.amin.default: _smallest_of,
    aten.max.dim: _largest, aten.min.dim: _smallest, aten.clamp.Tensor: _clamp,
    aten.max.default: _largest_of_all, aten.min.default: _smallest_of_all,
    aten.fmax.default: _larger, aten.fmin.default: _smaller, aten.dist.default: _distance,
    aten.empty.memory_format: _empty, aten.empty_permuted.default: _empty_permuted,
    aten.new_empty_strided.default: _new_empty_strided,
    aten.index.Tensor: _index, aten.index_put.default: _index_put,
    aten._unsafe_index.Tensor: _unsafe_index, aten._unsafe_index_put.default: _unsafe_index_put,
    aten.scatter.value: _scatter_value,
    aten._weight_norm_interface.default: _weight_norm,
    aten._weight_norm_interface_backward.default: _weight_norm_backward,
    aten.any.default: _any, aten.prod.default: _product_of_all, aten.prod.dim_int: _product,
    aten._cdist_forward.default: _distances, aten._cdist_backward.default: _distances_backward,
    aten.scatter_reduce.two: _scatter_reduce, aten._trilinear.default: _trilinear,
    **ANTIALIASED, **ELEMENTWISE, **ORDER, **PLACES, **RANDOM,
}  # fmt: skip
"""By op; a rule that gives ``NotImplemented`` leaves the call as it is."""
