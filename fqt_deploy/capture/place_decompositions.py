"""Views of elements at places that shapes alone say: strides, windows, diagonals, borders. They become indices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

aten = torch.ops.aten


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


def _flat_places(x: Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None) -> Tensor | None:
    """Where in the memory of ``x`` each element of a strided view is, int64; None if it is not all in ``x``."""
    begin = 0 if offset is None else offset - int(x.storage_offset())
    end = begin + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if _storage_order(x.shape, x.stride()) is None or begin < 0 or end >= x.numel() or 0 in size:
        return None
    places = torch.full([1] * len(size), begin, dtype=torch.int64)
    for axis, (extent, step) in enumerate(zip(size, stride, strict=True)):
        places = places + torch.arange(extent).view([-1] + [1] * (len(size) - 1 - axis)) * step
    return places


def _as_strided(x: Tensor, size: list[int], stride: list[int], storage_offset: int | None = None) -> Any:
    """A strided view of all elements, as those of tensors with another memory format, or of some."""
    whole = storage_offset in (None, x.storage_offset())
    seen = _restrided(x, (x.shape, x.stride()), (size, stride)) if whole else None
    if seen is not None:
        return seen
    places, order = _flat_places(x, size, stride, storage_offset), _storage_order(x.shape, x.stride())
    if places is None or order is None:
        return NotImplemented
    return aten.index.Tensor(x.permute(order).reshape(-1), [places])


def _as_strided_scatter(
    x: Tensor, src: Tensor, size: list[int], stride: list[int], storage_offset: int | None = None
) -> Any:
    """Written through a view; if it is one of all elements, nothing is left of what was there."""
    whole = storage_offset in (None, x.storage_offset())
    written = _restrided(src, (size, stride), (x.shape, x.stride())) if whole else None
    if written is not None:
        return written
    places, order = _flat_places(x, size, stride, storage_offset), _storage_order(x.shape, x.stride())
    if places is None or order is None:
        return NotImplemented
    ordered = x.permute(order)
    flat = aten.index_put.default(ordered.reshape(-1), [places.reshape(-1)], src.reshape(-1))
    return flat.view(ordered.shape).permute([order.index(axis) for axis in range(x.dim())])


def _view(x: Tensor, size: Sequence[int]) -> Any:
    """A view; of a copy, where an op that was spelled in others left its elements in another order."""
    with _disable_current_modes():  # a question, nothing to trace
        try:
            torch.empty_strided(x.shape, x.stride(), device="meta").view(size)
        except (RuntimeError, ValueError):  # PyTorch in C++ raises the one, in Python the other
            pass
        else:
            return NotImplemented
    return aten.view.default(x.clone(memory_format=torch.contiguous_format), size)


def _unfold(x: Tensor, dimension: int, size: int, step: int) -> Any:
    """Windows along one axis, their elements along a new last one."""
    if x.dim() == 0:
        return NotImplemented
    axis = dimension % x.dim()
    count = (x.shape[axis] - size) // step + 1
    places = torch.arange(count)[:, None] * step + torch.arange(size)[None, :]
    return aten.index.Tensor(x, [*[None] * axis, places]).movedim(axis + 1, -1)


def _diagonal_places(shape: Sequence[int], offset: int) -> list[Tensor]:
    rows, columns = (int(extent) for extent in shape[-2:])
    count = max(0, min(rows + min(offset, 0), columns - max(offset, 0)))
    return [torch.arange(count) - min(offset, 0), torch.arange(count) + max(offset, 0)]


def _diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    last = x.movedim((dim1, dim2), (-2, -1))
    return aten.index.Tensor(last, [*[None] * (x.dim() - 2), *_diagonal_places(last.shape, offset)])  # type: ignore[no-any-return]


def _diagonal_scatter(x: Tensor, src: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    last = x.movedim((dim1, dim2), (-2, -1))
    where = [*[None] * (x.dim() - 2), *_diagonal_places(last.shape, offset)]
    return aten.index_put.default(last, where, src).movedim((-2, -1), (dim1, dim2))  # type: ignore[no-any-return]


def _replication_backward(grad_output: Tensor, x: Tensor, padding: Sequence[int]) -> Tensor:
    """The gradient of a border that repeats the outermost elements: it is added to theirs."""
    gradient = grad_output
    for number in range(len(padding) // 2):
        axis = x.dim() - 1 - number
        places = torch.arange(gradient.shape[axis]) - padding[2 * number]
        extents = [*gradient.shape[:axis], x.shape[axis], *gradient.shape[axis + 1 :]]
        where = [*[None] * axis, torch.clamp(places, 0, x.shape[axis] - 1)]
        gradient = aten.index_put.default(torch.zeros(extents), where, gradient, True)
    return gradient


def _lower_triangle(row: int, col: int, offset: int = 0, *_: Any, **__: Any) -> Tensor:
    """Rows and columns of the elements on and below a diagonal, [2, elements] int64."""
    count = sum(min(max(place + offset + 1, 0), col) for place in range(row))
    return _triangle(count, torch.clamp(torch.arange(row) + (offset + 1), 0, col), torch.zeros(row, dtype=torch.int64))


def _upper_triangle(row: int, col: int, offset: int = 0, *_: Any, **__: Any) -> Tensor:
    count = sum(col - min(max(place + offset, 0), col) for place in range(row))
    first = torch.clamp(torch.arange(row) + offset, 0, col)
    return _triangle(count, col - first, first)


def _triangle(count: int, lengths: Tensor, first: Tensor) -> Tensor:
    """Where elements are, row by row, of rows of which ``lengths`` from ``first`` on are taken."""
    places, ends = torch.arange(count), lengths.cumsum(0)
    rows = (places[:, None] >= ends).sum(1)
    return torch.stack([rows, places + (first - ends + lengths)[rows]])


PLACES: dict[Any, Callable[..., Any]] = {
    aten.as_strided.default: _as_strided, aten.as_strided_scatter.default: _as_strided_scatter,
    aten.view.default: _view, aten.unfold.default: _unfold,
    aten.diagonal.default: _diagonal, aten.diagonal_scatter.default: _diagonal_scatter,
    aten.tril_indices.default: _lower_triangle, aten.triu_indices.default: _upper_triangle,
    aten.replication_pad1d_backward.default: _replication_backward,
    aten.replication_pad2d_backward.default: _replication_backward,
    aten.replication_pad3d_backward.default: _replication_backward,
}  # fmt: skip
"""By op; a rule that gives ``NotImplemented`` leaves the call as it is."""
