"""``fqt::channel_gradient_sums``: the two sums that batch normalization's backward needs, in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te

from fqt_deploy.ops.layers.channel_sums import onnx_channel_sum, pair_sum
from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(gradient: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the gradient, and of gradient times centered input, over all axes but the last.

    Args:
        gradient: [..., C] float32.
        x: [..., C] float32.
        mean: [C] float32.

    Returns:
        sum(gradient): [C] float32. sum(gradient * (x - mean)): [C] float32.
    """
    rows = gradient.flatten(0, -2)
    return rows.sum(0), (rows * (x.flatten(0, -2) - mean)).sum(0)


def fake(gradient: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Shape rule: [..., C], [..., C], [C] -> [C], [C]."""
    if gradient.shape != x.shape:
        raise ValueError(f"gradient {tuple(gradient.shape)} and input {tuple(x.shape)} differ in shape")
    return torch.empty_like(mean), torch.empty_like(mean)


def compute(gradient: te.Tensor, x: te.Tensor, mean: te.Tensor) -> tuple[te.Tensor, te.Tensor]:
    """One pass over both operands; partial sums by index of axis 0."""
    *leading, channels = (int(d) for d in gradient.shape)
    return pair_sum(
        leading,
        channels,
        lambda *i: (gradient[i], gradient[i] * (x[i] - mean[i[-1]])),
        name="channel_gradient_sums",
    )


def cost(gradient: Tensor, x: Tensor, mean: Tensor) -> Cost:
    """Four operations an element, each operand read once."""
    return Cost(flops=4 * x.numel(), bytes_moved=tensor_bytes(gradient, x, mean))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Spatial and flat."""
    g = torch.Generator().manual_seed(0)
    for shape in ((3, 4, 5, 32), (17, 10)):
        x = torch.randn(shape, generator=g)
        yield torch.randn(shape, generator=g), x, x.flatten(0, -2).mean(0)


def onnx_body(op: Body, gradient: str, x: str, mean: str) -> tuple[str, str]:
    """Two sums."""
    return onnx_channel_sum(op, gradient), onnx_channel_sum(op, op("Mul", gradient, op("Sub", x, mean)))


channel_gradient_sums = OpSpec(
    "channel_gradient_sums",
    OpKind.ROOT,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    tolerance=1e-4,
    onnx=OnnxFunction(onnx_body),
).register()
