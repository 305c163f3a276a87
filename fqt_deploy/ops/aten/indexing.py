"""ATen ops that move or select elements without computing on them, and constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.aten.pointwise import read_broadcast, tvm_dtype

aten = torch.ops.aten


def _view(result: Tensor, x: te.Tensor, _: Any, name: str) -> te.Tensor:
    source, target = [int(d) for d in x.shape], [int(d) for d in result.shape]
    return te.compute(target, lambda *i: x[tuple(reshape_index(i, target, source))], name=name)


def reshape_index(index: tuple[Any, ...], target: list[int], source: list[int]) -> list[Any]:
    """Where element ``index`` of a tensor viewed as ``target`` lies in its ``source`` shape.

    Axes are matched in groups of equal size, so that an axis common to both shapes stays a plain index.
    """
    out: list[Any] = [0] * len(source)
    t, s = 0, 0
    while t < len(target) or s < len(source):
        t_end, s_end = t, s
        t_size, s_size = 1, 1
        first = True
        while first or t_size != s_size:
            first = False
            if (t_size <= s_size and t_end < len(target)) or s_end == len(source):
                t_size *= target[t_end]
                t_end += 1
            else:
                s_size *= source[s_end]
                s_end += 1
        flat: Any = 0
        for axis in range(t, t_end):
            if target[axis] != 1:
                flat = flat * target[axis] + index[axis]
        axes = [axis for axis in range(s, s_end) if source[axis] != 1]
        for axis in reversed(axes):
            last = axis == axes[0]
            out[axis] = flat if last else tirx.floormod(flat, source[axis])
            flat = flat if last else tirx.floordiv(flat, source[axis])
        t, s = t_end, s_end
    return out


def _permute(result: Tensor, x: te.Tensor, order: list[int], name: str) -> te.Tensor:
    rank = len(order)
    inverse = [0] * rank
    for axis, source in enumerate(order):
        inverse[source % rank] = axis
    return te.compute(list(map(int, result.shape)), lambda *i: x[tuple(i[a] for a in inverse)], name=name)


def _expand(result: Tensor, x: te.Tensor, _: Any, name: str) -> te.Tensor:
    return te.compute(list(map(int, result.shape)), lambda *i: read_broadcast(x, i), name=name)


def _slice(
    result: Tensor, x: te.Tensor, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1, *,
    name: str,
) -> te.Tensor:  # fmt: skip
    axis %= len(x.shape)
    extent = int(x.shape[axis])
    begin = start or 0
    begin = max(0, begin + extent if begin < 0 else begin)

    def at(*i: Any) -> Any:
        return x[(*i[:axis], i[axis] * step + begin, *i[axis + 1 :])]

    return te.compute(list(map(int, result.shape)), at, name=name)


def _pad(result: Tensor, x: te.Tensor, amounts: list[int], value: float = 0.0, *, name: str) -> te.Tensor:
    rank = len(x.shape)
    before = [amounts[2 * (rank - 1 - axis)] if 2 * (rank - 1 - axis) < len(amounts) else 0 for axis in range(rank)]

    def at(*i: Any) -> Any:
        source = [position - shift for position, shift in zip(i, before, strict=True)]
        bounds = [c for p, extent in zip(source, x.shape, strict=True) for c in (p >= 0, p < int(extent))]
        return tirx.if_then_else(tirx.all(*bounds), x[tuple(source)], tirx.const(value, x.dtype))

    return te.compute(list(map(int, result.shape)), at, name=name)


def _select(result: Tensor, x: te.Tensor, axis: int, position: int, name: str) -> te.Tensor:
    axis %= len(x.shape)
    position %= int(x.shape[axis])
    return te.compute(list(map(int, result.shape)), lambda *i: x[(*i[:axis], position, *i[axis:])], name=name)


def _cat(result: Tensor, tensors: list[te.Tensor], axis: int = 0, *, name: str) -> te.Tensor:
    axis %= len(result.shape)
    starts = [0]
    for tensor in tensors:
        starts.append(starts[-1] + int(tensor.shape[axis]))

    def at(*i: Any) -> Any:
        value: Any = None
        for tensor, start in reversed(list(zip(tensors, starts, strict=False))):
            here = tensor[(*i[:axis], i[axis] - start, *i[axis + 1 :])]
            value = here if value is None else tirx.if_then_else(i[axis] < start + int(tensor.shape[axis]), here, value)
        return value

    return te.compute(list(map(int, result.shape)), at, name=name)


def _gather(result: Tensor, x: te.Tensor, axis: int, index: te.Tensor, name: str) -> te.Tensor:
    axis %= len(x.shape)
    return te.compute(
        list(map(int, result.shape)), lambda *i: x[(*i[:axis], index[i].astype("int32"), *i[axis + 1 :])], name=name
    )


def _scatter_value(result: Tensor, x: te.Tensor, axis: int, index: te.Tensor, value: float, name: str) -> te.Tensor:
    axis %= len(x.shape)
    if int(index.shape[axis]) != 1:
        raise ValueError("scatter is supported for one position per row")

    def at(*i: Any) -> Any:
        hit = index[(*i[:axis], 0, *i[axis + 1 :])].equal(i[axis].astype(index.dtype))
        return tirx.Select(hit, tirx.const(value, x.dtype), x[i])

    return te.compute(list(map(int, result.shape)), at, name=name)


def _constant(result: Tensor, value: float, name: str) -> te.Tensor:
    dtype = tvm_dtype(result.dtype)
    return te.compute(list(map(int, result.shape)), lambda *_: tirx.const(value, dtype), name=name)


def _arange(result: Tensor, start: float, step: float, name: str) -> te.Tensor:
    dtype = tvm_dtype(result.dtype)
    return te.compute(
        list(map(int, result.shape)),
        lambda i: i.astype(dtype) * tirx.const(step, dtype) + tirx.const(start, dtype),
        name=name,
    )


INDEXING: dict[Any, Callable[..., te.Tensor]] = {
    aten.view.default: _view,
    aten.permute.default: _permute,
    aten.expand.default: _expand,
    aten.slice.Tensor: _slice,
    aten.constant_pad_nd.default: _pad,
    aten.select.int: _select,
    aten.cat.default: _cat,
    aten.gather.default: _gather,
    aten.scatter.value: _scatter_value,
    aten.full.default: lambda r, _, value, name: _constant(r, value, name),
    aten.full_like.default: lambda r, _, value, name: _constant(r, value, name),
    aten.scalar_tensor.default: lambda r, value, name: _constant(r, value, name),
    aten.zeros.default: lambda r, *_, name: _constant(r, 0, name),
    aten.empty.memory_format: lambda r, *_, name: _constant(r, 0, name),
    aten.ones.default: lambda r, *_, name: _constant(r, 1, name),
    aten.zeros_like.default: lambda r, *_, name: _constant(r, 0, name),
    aten.ones_like.default: lambda r, *_, name: _constant(r, 1, name),
    aten.arange.start_step: lambda r, start, end, step=1, *, name: _arange(r, start, step, name),
    aten.arange.default: lambda r, end, *, name: _arange(r, 0, 1, name),
}
"""Every supported data-movement overload: (result, *args, name=...) -> TE stage."""
