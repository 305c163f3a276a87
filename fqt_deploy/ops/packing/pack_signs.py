"""``fqt::pack_signs``: the sign bits of the last axis, 32 to a word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib.onnx_bits import pack
from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.lib.packed_words import WORD, pack_last_axis, packed, word_count
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(x: Tensor) -> Tensor:
    """Bit 1 where ``x > 0``.

    Args:
        x: [..., C] float32.

    Returns:
        [..., ceil(C / 32)] int32.
    """
    return pack_last_axis(x > 0)


def fake(x: Tensor) -> Tensor:
    """Shape rule: [..., C] -> [..., ceil(C / 32)]."""
    if x.ndim < 1:
        raise ValueError("a scalar has no axis to pack")
    return x.new_empty((*x.shape[:-1], word_count(x.shape[-1])), dtype=torch.int32)


def compute(x: te.Tensor) -> te.Tensor:
    """Compare in one pass, collect the bits in another."""
    *leading, channels = (int(d) for d in x.shape)
    positive = te.compute(x.shape, lambda *i: (x[i] > 0.0).astype("uint8"), name="pack_signs_positive")

    def bit(*index: Any) -> Any:
        *outer, word, k = index
        c = word * WORD + k
        if channels % WORD == 0:
            return positive[(*outer, c)]
        return tirx.if_then_else(c < channels, positive[(*outer, c)], tirx.const(0, "uint8"))

    return packed((*leading, word_count(channels)), bit, name="pack_signs")


def cost(x: Tensor) -> Cost:
    """One comparison an element."""
    return Cost(flops=x.numel(), bytes_moved=tensor_bytes(x) + x.numel() // 8)


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Whole and partial words, zeros of both signs."""
    g = torch.Generator().manual_seed(0)
    yield (torch.randn(3, 4, 5, 64, generator=g),)
    yield (torch.randn(2, 3, 3, 33, generator=g),)
    yield (torch.randn(7, 5, generator=g),)
    yield (torch.tensor([[0.0, -0.0, 1e-38, -1e-38]]),)


def onnx_body(op: Body, x: str) -> str:
    """Compare, then collect the bits."""
    return pack(op, op("Greater", x, op.constant(0.0, "float32")))


pack_signs = OpSpec(
    "pack_signs", OpKind.ROOT, reference, fake, compute, cost, sample_inputs, onnx=OnnxFunction(onnx_body)
).register()
