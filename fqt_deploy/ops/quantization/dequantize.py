"""``fqt::dequantize``: from integer codes back to gradient values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te

from fqt_deploy.ops.lib.onnx_body import Attributes, Body, OnnxFunction
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(codes: Tensor, scale: Tensor, zero: Tensor, axis: int) -> Tensor:
    """``scale * code + zero``, one scale and zero per index of ``axis``.

    Args:
        codes: [N, P, C] uint8.
        scale: [G] float32, G the extent of ``axis``.
        zero: [G] float32.
        axis: 0 for groups that are samples, 2 for groups that are channels.

    Returns:
        [N, P, C] float32.
    """
    shape = [-1 if a == axis else 1 for a in range(3)]
    return codes.float() * scale.view(shape) + zero.view(shape)


def fake(codes: Tensor, scale: Tensor, zero: Tensor, axis: int) -> Tensor:
    """Shape rule: as ``codes``, float32."""
    if scale.shape != (codes.shape[axis],):
        raise ValueError(f"scale {tuple(scale.shape)} does not match axis {axis} of {tuple(codes.shape)}")
    return torch.empty_like(codes, dtype=torch.float32)


def compute(codes: te.Tensor, scale: te.Tensor, zero: te.Tensor, axis: int) -> te.Tensor:
    """Element-wise."""
    return te.compute(
        codes.shape,
        lambda *i: codes[i].astype("float32") * scale[i[axis]] + zero[i[axis]],
        name="dequantize",
    )


def cost(codes: Tensor, scale: Tensor, zero: Tensor, axis: int) -> Cost:
    """Two operations an element."""
    return Cost(flops=2 * codes.numel(), bytes_moved=5 * tensor_bytes(codes))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Both axes."""
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (3, 4, 5), generator=g, dtype=torch.uint8)
    yield codes, torch.rand(3, generator=g), torch.randn(3, generator=g), 0
    yield codes, torch.rand(5, generator=g), torch.randn(5, generator=g), 2


def onnx_attributes(codes: Tensor, scale: Tensor, zero: Tensor, axis: int) -> Attributes:
    """``shape``: of the grid beside the codes."""
    return {"shape": [-1 if a == axis else 1 for a in range(3)]}


def onnx_body(op: Body, codes: str, scale: str, zero: str) -> str:
    """Element-wise."""
    step, offset = (op("Reshape", value, op.integers("shape")) for value in (scale, zero))
    return op("Add", op("Mul", op.cast(codes, "float32"), step), offset)


dequantize = OpSpec(
    "dequantize",
    OpKind.ELEMENTWISE,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    onnx=OnnxFunction(onnx_body, onnx_attributes),
).register()
