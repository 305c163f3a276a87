"""``fqt::transpose_packed_weight``: a packed weight, as the activation-gradient product reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib import onnx_bits
from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.lib.packed_words import PANEL, WORD, bit_of, packed, panel_count, word_count
from fqt_deploy.ops.packing import pack_weight
from fqt_deploy.ops.products.binary_conv2d import signs_of_weight
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(w_bits: Tensor, in_channels: int, out_channels: int, taps: int) -> Tensor:
    """The bits over output channels instead of input channels: 1/32 of the memory that the weight itself takes.

    Args:
        w_bits: [ceil(O / 16), T * ceil(I / 32), 16] int32, see ``pack_weight``.
        in_channels: I.
        out_channels: O.
        taps: T.

    Returns:
        [ceil(I / 16), T * ceil(O / 32), 16] int32.
    """
    signs = signs_of_weight(w_bits, in_channels, out_channels, [taps, 1])
    return pack_weight.reference(signs.transpose(0, 1).float())


def fake(w_bits: Tensor, in_channels: int, out_channels: int, taps: int) -> Tensor:
    """Shape rule of ``reference``."""
    if tuple(w_bits.shape) != (panel_count(out_channels), taps * word_count(in_channels), PANEL):
        raise ValueError(f"packed weight {tuple(w_bits.shape)} does not fit {in_channels} and {out_channels} channels")
    return w_bits.new_empty((panel_count(in_channels), taps * word_count(out_channels), PANEL))


def compute(w_bits: te.Tensor, in_channels: int, out_channels: int, taps: int) -> te.Tensor:
    """Gather bit by bit; bits past the last channel are 0."""
    words_in, words_out = word_count(in_channels), word_count(out_channels)

    def bit(panel: Any, tap_word: Any, lane: Any, k: Any) -> Any:
        tap, o, i = tap_word // words_out, tap_word % words_out * WORD + k, panel * PANEL + lane
        value = bit_of(w_bits[o // PANEL, tap * words_in + i // WORD, o % PANEL], i % WORD)
        return tirx.if_then_else(tirx.all(i < in_channels, o < out_channels), value, tirx.const(0, "int32"))

    return packed((panel_count(in_channels), taps * words_out, PANEL), bit, name="transpose_packed_weight")


def cost(w_bits: Tensor, in_channels: int, out_channels: int, taps: int) -> Cost:
    """Memory traffic only."""
    return Cost(bytes_moved=tensor_bytes(w_bits, fake(w_bits, in_channels, out_channels, taps)))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Whole and partial words and panels, one tap and several."""
    g = torch.Generator().manual_seed(0)
    for o, i, taps in ((64, 32, 9), (48, 96, 1), (33, 5, 1), (10, 70, 4)):
        yield pack_weight.reference(torch.randn(o, i, taps, 1, generator=g)), i, o, taps


def onnx_body(op: Body, w_bits: str) -> str:
    """Unpack, transpose, pack."""
    names = ("out_channels", "in_channels", "taps")
    rows, channels, taps = (op.reshape(op.integer(name), 1) for name in names)
    words = op.reshape(onnx_bits.from_panels(op, w_bits, rows), rows, taps, -1)
    bits = op.front(onnx_bits.unpack(op, words, onnx_bits.BITS, "uint8"), channels, 2)  # [O, T, I]
    transposed = onnx_bits.pack(op, op.cast(op("Transpose", bits, perm=[2, 1, 0]), "bool"))
    return onnx_bits.to_panels(op, op("Flatten", transposed, axis=1))


transpose_packed_weight = OpSpec(
    "transpose_packed_weight",
    OpKind.PRODUCT,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    onnx=OnnxFunction(onnx_body),
).register()
