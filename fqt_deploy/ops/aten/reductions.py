"""ATen reductions over any axes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.aten.pointwise import tvm_dtype
from fqt_deploy.ops.lib.expression_dtype import dtype_of

aten = torch.ops.aten
prims = torch.ops.prims


@dataclass(frozen=True)
class Reduction:
    """One ATen reduction: how elements combine and what is done with the total.

    Attributes:
        combine: TE reducer, ``(expression, axis=...) -> expression``.
        finish: ``(total, number of elements) -> result``; None for the total itself.
    """

    combine: Callable[..., Any]
    finish: Callable[[Any, int], Any] | None = None


_SUM = Reduction(te.sum)
_MEAN = Reduction(te.sum, lambda total, count: total / tirx.const(float(count), "float32"))

REDUCTIONS: dict[Any, Reduction] = {
    aten.sum.dim_IntList: _SUM,
    aten.sum.default: _SUM,
    prims.sum.default: _SUM,
    aten.mean.dim: _MEAN,
    aten.mean.default: _MEAN,
    aten.amax.default: Reduction(te.max),
    aten.amin.default: Reduction(te.min),
}
"""Every supported reduction overload."""


def reduced_axes(args: tuple[Any, ...], rank: int) -> list[int]:
    """The axes that a reduction call with ``args`` (the operand first) reduces."""
    dims = args[1] if len(args) > 1 else None
    dims = [dims] if isinstance(dims, int) else dims
    return sorted(int(d) % rank for d in dims) if dims else list(range(rank))


def compute(target: Any, result: Tensor, args: tuple[Any, ...], name: str) -> te.Tensor:
    """TE stages of one reduction.

    A reduction over a leading axis together with inner ones runs first within each index of axis 0, then over axis 0:
    partial results belong to indices, never to threads.

    Args:
        target: the overload, a key of ``REDUCTIONS``.
        result: fake tensor with the result's shape and dtype.
        args: the operand as ``te.Tensor``, then PyTorch's ``dim`` and ``keepdim`` where given.
        name: prefix of the stage names.
    """
    op, x = REDUCTIONS[target], args[0]
    extents = [int(d) for d in x.shape]
    axes = reduced_axes(args, len(extents))
    kept = [a for a in range(len(extents)) if a not in axes]
    dtype = tvm_dtype(result.dtype)
    count = 1
    for a in axes:
        count *= extents[a]
    keepdim = len(result.shape) == len(extents)
    source: Any = x
    if axes[:1] == [0] and len(axes) > 1 and extents[0] > 1 and kept:
        source = _reduce(op, x, axes[1:], [0, *kept], dtype, f"{name}_partial")
        totals = _reduce(op, source, [0], list(range(1, len(kept) + 1)), dtype, f"{name}_total")
    else:
        totals = _reduce(op, source, axes, kept, dtype, f"{name}_total")

    def finished(*index: Any) -> Any:
        at = tuple(index[a] for a in kept) if keepdim else index
        total = totals[at]
        return total if op.finish is None else op.finish(total, count)

    if op.finish is None and not (keepdim and axes):
        return totals
    return te.compute([int(d) for d in result.shape], finished, name=name)


def _reduce(op: Reduction, x: te.Tensor, axes: list[int], kept: list[int], dtype: str, name: str) -> te.Tensor:
    loops = {a: te.reduce_axis((0, int(x.shape[a])), name=f"r{a}") for a in axes}

    def total(*index: Any) -> Any:
        where = dict(zip(kept, index, strict=True)) | loops
        value = x[tuple(where[a] for a in range(len(x.shape)))]
        return op.combine(value if dtype_of(value) == dtype else value.astype(dtype), axis=list(loops.values()))

    return te.compute([int(x.shape[a]) for a in kept], total, name=name)
