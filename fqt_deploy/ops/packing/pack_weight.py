"""``fqt::pack_weight``: sign bits of a convolution's weight, in the order that the forward product reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib import onnx_bits
from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.lib.packed_words import PANEL, WORD, pack_last_axis, packed, panel_count, to_panels, word_count
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(w: Tensor) -> Tensor:
    """Pack over input channels, tap after tap; sixteen output channels are interleaved.

    Args:
        w: [O, I, KH, KW] float32.

    Returns:
        [ceil(O / 16), KH * KW * ceil(I / 32), 16] int32.
    """
    bits = pack_last_axis(w.permute(0, 2, 3, 1) > 0)
    return to_panels(bits.flatten(1))


def fake(w: Tensor) -> Tensor:
    """Shape rule of ``reference``."""
    if w.ndim != 4:
        raise ValueError(f"expected [O, I, KH, KW], got {tuple(w.shape)}")
    o, i, kh, kw = w.shape
    return w.new_empty((panel_count(o), kh * kw * word_count(i), PANEL), dtype=torch.int32)


def compute(w: te.Tensor) -> te.Tensor:
    """Bits past the last channel are 0."""
    o, i, kh, kw = (int(d) for d in w.shape)
    words = word_count(i)

    def bit(panel: Any, tap_word: Any, lane: Any, k: Any) -> Any:
        tap, channel = tap_word // words, tap_word % words * WORD + k
        row = panel * PANEL + lane
        inside = tirx.all(row < o, channel < i)
        return tirx.if_then_else(
            inside, (w[row, channel, tap // kw, tap % kw] > 0.0).astype("int32"), tirx.const(0, "int32")
        )

    return packed((panel_count(o), kh * kw * words, PANEL), bit, name="pack_weight")


def cost(w: Tensor) -> Cost:
    """One comparison an element."""
    return Cost(flops=w.numel(), bytes_moved=tensor_bytes(w) + w.numel() // 8)


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Whole panels, partial ones, a linear layer."""
    g = torch.Generator().manual_seed(0)
    yield (torch.randn(32, 64, 3, 3, generator=g),)
    yield (torch.randn(10, 33, 3, 2, generator=g),)
    yield (torch.randn(17, 70, 1, 1, generator=g),)


def onnx_body(op: Body, w: str) -> str:
    """Channels last, pack, interleave rows."""
    return packed_rows(op, op("Transpose", w, perm=[0, 2, 3, 1]))


def packed_rows(op: Body, w: str) -> str:
    """Panels of the signs of ``w`` [rows, KH, KW, channels]."""
    bits = onnx_bits.pack(op, op("Greater", w, op.constant(0.0, "float32")))
    return onnx_bits.to_panels(op, op("Flatten", bits, axis=1))


pack_weight = OpSpec(
    "pack_weight", OpKind.ROOT, reference, fake, compute, cost, sample_inputs, onnx=OnnxFunction(onnx_body)
).register()
