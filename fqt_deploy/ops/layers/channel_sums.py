"""Two sums per channel in one pass over memory, partitioned by shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body

LONGEST = 4096
"""Terms that are added one after another: many equal ones, as of few levels, round the same way again and again."""


def pair_sum(leading: list[int], channels: int, term: Callable[..., tuple[Any, Any]], name: str) -> tuple[Any, Any]:
    """Sum two float32 expressions over all leading axes, for every channel.

    With more than one leading axis the sum runs first within each index of axis 0, or of axes 0 and 1 if that were more
    than ``LONGEST`` terms, then over these: partial sums belong to indices, not to threads, so the result does not
    depend on the thread count.

    Args:
        leading: extents of the axes to reduce.
        channels: extent of the last axis, which is kept.
        term: index variables (leading axes, then channel) -> two float32 expressions.
        name: prefix of the stage names.

    Returns:
        Two tensors of shape [channels], float32.
    """
    add = te.comm_reducer(
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
        lambda *types: tuple(tirx.const(0, t) for t in types),
        name="pair_sum",
    )
    if len(leading) == 1:
        rows = te.reduce_axis((0, leading[0]), name="row")
        return tuple(te.compute((channels,), lambda c: add(term(rows, c), axis=rows), name=name))
    kept = 1 if len(leading) == 2 or math.prod(leading[1:]) <= LONGEST else 2
    axes = [te.reduce_axis((0, extent), name=f"r{i}") for i, extent in enumerate(leading[kept:])]
    part0, part1 = te.compute(
        (*leading[:kept], channels), lambda *i: add(term(*i[:-1], *axes, i[-1]), axis=axes), name=f"{name}_partial"
    )
    outer = [te.reduce_axis((0, extent), name=f"outer{i}") for i, extent in enumerate(leading[:kept])]
    return tuple(
        te.compute((channels,), lambda c: add((part0[(*outer, c)], part1[(*outer, c)]), axis=outer), name=name)
    )


def channel_copy(value: te.Tensor, name: str, factor: float = 1.0) -> te.Tensor:
    """A copy of ``value``, [C] float32, times ``factor``, which the runtime may replace."""
    return te.compute(
        value.shape, lambda c: value[c] if factor == 1.0 else value[c] * tirx.const(factor, "float32"), name
    )


def onnx_copies(op: Body, *values: str) -> tuple[str, ...]:
    """Copies of ``values``."""
    return tuple(op("Identity", value) for value in values)


def onnx_channel_sum(op: Body, x: str) -> str:
    """[..., C] float32 -> [C]: first within each index of axis 0, so that no sum has very many terms."""
    rows = op.reshape(x, op.extent(x, 0), -1, op.extent(x, -1))
    return op.sum(op.sum(rows, 1), 0)
