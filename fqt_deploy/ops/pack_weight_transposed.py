"""``fqt::pack_weight_transposed``: sign bits of a weight, as the activation-gradient product reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops import pack_weight as forward
from fqt_deploy.ops.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.packed_words import PANEL, WORD, packed, panel_count, word_count
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec


def reference(w: Tensor) -> Tensor:
    """Pack over output channels, tap after tap; sixteen input channels are interleaved.

    Args:
        w: [O, I, KH, KW] float32.

    Returns:
        [ceil(I / 16), KH * KW * ceil(O / 32), 16] int32.
    """
    return forward.reference(w.transpose(0, 1))


def fake(w: Tensor) -> Tensor:
    """Shape rule of ``reference``."""
    return forward.fake(w.transpose(0, 1))


def compute(w: te.Tensor) -> te.Tensor:
    """Bits past the last channel are 0."""
    o, i, kh, kw = (int(d) for d in w.shape)
    words = word_count(o)

    def bit(panel: Any, tap_word: Any, lane: Any, k: Any) -> Any:
        tap, channel = tap_word // words, tap_word % words * WORD + k
        row = panel * PANEL + lane
        inside = tirx.all(row < i, channel < o)
        return tirx.if_then_else(
            inside, (w[channel, row, tap // kw, tap % kw] > 0.0).astype("int32"), tirx.const(0, "int32")
        )

    return packed((panel_count(i), kh * kw * words, PANEL), bit, name="pack_weight_transposed")


def cost(w: Tensor) -> Cost:
    """One comparison an element."""
    return forward.cost(w)


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """As for ``pack_weight``."""
    yield from forward.sample_inputs()
    yield (torch.full((33, 5, 1, 1), -0.0),)


def onnx_body(op: Body, w: str) -> str:
    """As ``pack_weight``, with the two channel axes exchanged."""
    return forward.packed_rows(op, op("Transpose", w, perm=[1, 2, 3, 0]))


pack_weight_transposed = OpSpec(
    "pack_weight_transposed", OpKind.ROOT, reference, fake, compute, cost, sample_inputs, onnx=OnnxFunction(onnx_body)
).register()
