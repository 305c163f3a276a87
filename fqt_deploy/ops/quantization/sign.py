"""``fqt::sign``: the 1-bit quantizer of weights and activations, and its straight-through gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(x: Tensor) -> Tensor:
    """+1 where ``x > 0``, else -1; zero of either sign is -1.

    Args:
        x: [...] float32.

    Returns:
        [...] float32.
    """
    return torch.where(x > 0, 1.0, -1.0)


def straight_through_reference(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient where ``|x| < 1``, else 0.

    Args:
        gradient: [...] float32.
        x: [...] float32, what the sign was taken of.

    Returns:
        [...] float32.
    """
    return torch.where(x.abs() < 1, gradient, 0.0)


def fake(x: Tensor) -> Tensor:
    """Shape rule: as ``x``."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def straight_through_fake(gradient: Tensor, x: Tensor) -> Tensor:
    """Shape rule: as ``gradient``."""
    if gradient.shape != x.shape:
        raise ValueError(f"gradient {tuple(gradient.shape)} and input {tuple(x.shape)} differ in shape")
    return torch.empty_like(gradient, memory_format=torch.contiguous_format)


def compute(x: te.Tensor) -> te.Tensor:
    """Element-wise selection."""
    one = tirx.const(1.0, "float32")
    return te.compute(x.shape, lambda *i: tirx.Select(x[i] > 0.0, one, -one), name="sign")


def straight_through_compute(gradient: te.Tensor, x: te.Tensor) -> te.Tensor:
    """Element-wise selection."""
    zero = tirx.const(0.0, "float32")
    return te.compute(x.shape, lambda *i: tirx.Select(tirx.abs(x[i]) < 1.0, gradient[i], zero), name="straight_through")


def cost(x: Tensor) -> Cost:
    """One comparison an element."""
    return Cost(flops=x.numel(), bytes_moved=2 * tensor_bytes(x))


def straight_through_cost(gradient: Tensor, x: Tensor) -> Cost:
    """One comparison an element."""
    return Cost(flops=2 * x.numel(), bytes_moved=3 * tensor_bytes(x))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Random values, and both zeros."""
    g = torch.Generator().manual_seed(0)
    yield (torch.randn(5, 33, generator=g),)
    yield (torch.tensor([0.0, -0.0, 1e-30, -1e-30, 2.0, -2.0]),)


def straight_through_sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Random values, and the edges of the pass band."""
    g = torch.Generator().manual_seed(0)
    yield torch.randn(5, 33, generator=g), torch.randn(5, 33, generator=g)
    yield torch.ones(4), torch.tensor([1.0, -1.0, 0.999, -0.999])


def onnx_body(op: Body, x: str) -> str:
    """Element-wise selection."""
    positive = op("Greater", x, op.constant(0.0, "float32"))
    return op("Where", positive, op.constant(1.0, "float32"), op.constant(-1.0, "float32"))


def straight_through_onnx_body(op: Body, gradient: str, x: str) -> str:
    """Element-wise selection."""
    inside = op("Less", op("Abs", x), op.constant(1.0, "float32"))
    return op("Where", inside, gradient, op.constant(0.0, "float32"))


sign = OpSpec(
    "sign", OpKind.ELEMENTWISE, reference, fake, compute, cost, sample_inputs, onnx=OnnxFunction(onnx_body)
).register()
straight_through = OpSpec(
    "straight_through",
    OpKind.ELEMENTWISE,
    straight_through_reference,
    straight_through_fake,
    straight_through_compute,
    straight_through_cost,
    straight_through_sample_inputs,
    onnx=OnnxFunction(straight_through_onnx_body),
).register()
