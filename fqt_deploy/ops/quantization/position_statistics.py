"""``fqt::position_statistics``: minimum, maximum and sum of squares over positions, in one read of the gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What both quantizers and both selections need, per sample and channel.

    Args:
        g: [N, P, C] float32.

    Returns:
        low, high, squares: [N, C] float32 each.
    """
    return g.amin(1), g.amax(1), (g * g).sum(1)


def fake(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape rule: [N, P, C] -> three times [N, C]."""
    if g.ndim != 3:
        raise ValueError(f"expected [N, P, C], got {tuple(g.shape)}")
    n, _, c = g.shape
    return g.new_empty(n, c), g.new_empty(n, c), g.new_empty(n, c)


def compute(g: te.Tensor) -> tuple[te.Tensor, ...]:
    """One tuple reduction."""
    n, positions, channels = (int(d) for d in g.shape)
    combine = te.comm_reducer(
        lambda a, b: (tirx.min(a[0], b[0]), tirx.max(a[1], b[1]), a[2] + b[2]),
        lambda *dtypes: (tirx.max_value(dtypes[0]), tirx.min_value(dtypes[1]), tirx.const(0.0, dtypes[2])),
    )
    p = te.reduce_axis((0, positions), "p")
    result = te.compute(
        (n, channels),
        lambda i, c: combine((g[i, p, c], g[i, p, c], g[i, p, c] * g[i, p, c]), axis=p),
        name="position_statistics",
    )
    return tuple(result)


def cost(g: Tensor) -> Cost:
    """Four operations an element."""
    return Cost(flops=4 * g.numel(), bytes_moved=tensor_bytes(g))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Whole and partial vectors, one position, long rows."""
    g = torch.Generator().manual_seed(0)
    for shape in ((3, 16, 64), (2, 5, 7), (4, 1, 33), (2, 16, 1024)):
        yield (torch.randn(shape, generator=g),)


def onnx_body(op: Body, g: str) -> tuple[str, str, str]:
    """Three reductions."""
    axis = op.constant([1], "int64")
    low, high = op("ReduceMin", g, axis, keepdims=0), op("ReduceMax", g, axis, keepdims=0)
    return low, high, op.sum(op("Mul", g, g), 1)


position_statistics = OpSpec(
    "position_statistics",
    OpKind.ROOT,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    tolerance=1e-4,
    onnx=OnnxFunction(onnx_body),
).register()
