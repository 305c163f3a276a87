"""``fqt::tap_sums``: sum of the weight signs that reach each input position; the zero point's share of dgrad."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input
from tvm import te, tirx

from fqt_deploy.ops.lib.convolution_shape import output_extents, output_position
from fqt_deploy.ops.lib.onnx_body import Attributes, Body, OnnxFunction
from fqt_deploy.ops.lib.packed_words import PANEL, WORD, pack_last_axis, popcount, to_panels, word_count
from fqt_deploy.ops.products.binary_conv2d import exact_below, onnx_signs_of_weight, signs_of_weight
from fqt_deploy.ops.products.conv2d_input_grad import conv_transpose, transposed_convolution
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(
    w_bits: Tensor,
    in_channels: int,
    out_channels: int,
    input_hw: list[int],
    output_hw: list[int],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
) -> Tensor:
    """Transposed convolution of an image of ones: zero padding keeps padded taps out of the correction as well.

    Args:
        w_bits: [ceil(I / 16), KH * KW * ceil(O / 32), 16] int32, see ``transpose_packed_weight``.
        in_channels: I.
        out_channels: O.
        input_hw: height and width of the layer's input.
        output_hw: height and width of its output.
        kernel: KH, KW.
        stride: of the forward convolution.
        padding: of the forward convolution.

    Returns:
        [H, W, I] int32.
    """
    w = signs_of_weight(w_bits, out_channels, in_channels, kernel).transpose(0, 1)
    ones = torch.ones(1, out_channels, *output_hw, dtype=torch.float64)
    sums: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
        (1, in_channels, *input_hw), w.double(), ones, stride, padding
    )
    return sums[0].permute(1, 2, 0).contiguous().to(torch.int32)


def fake(
    w_bits: Tensor,
    in_channels: int,
    out_channels: int,
    input_hw: list[int],
    output_hw: list[int],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
) -> Tensor:
    """Shape rule of ``reference``."""
    if output_extents(input_hw, kernel, stride, padding) != list(output_hw):
        raise ValueError(f"an output of {output_hw} does not belong to an input of {input_hw}")
    return w_bits.new_empty((*input_hw, in_channels), dtype=torch.int32)


def compute(
    w_bits: te.Tensor,
    in_channels: int,
    out_channels: int,
    input_hw: list[int],
    output_hw: list[int],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
) -> te.Tensor:
    """Sum the signs of every tap once, then add up the taps that reach a position."""
    words = word_count(out_channels)
    word = te.reduce_axis((0, words), "word")

    def signs(tap: Any, i: Any) -> Any:
        row = w_bits[i // PANEL, tap * words + word, i % PANEL]
        present: Any = tirx.min(out_channels - word * WORD, WORD) if out_channels % WORD else WORD
        return te.sum(2 * popcount(row) - present, axis=word)

    per_tap = te.compute((kernel[0] * kernel[1], in_channels), signs, name="tap_sums_per_tap")
    kh, kw = te.reduce_axis((0, kernel[0]), "kh"), te.reduce_axis((0, kernel[1]), "kw")

    def term(h: Any, w: Any, i: Any) -> Any:
        inside, _, _ = output_position(h, w, kh, kw, output_hw, stride, padding)
        return te.sum(tirx.if_then_else(inside, per_tap[kh * kernel[1] + kw, i], 0), axis=[kh, kw])

    return te.compute((*input_hw, in_channels), term, name="tap_sums")


def cost(w_bits: Tensor, in_channels: int, out_channels: int, input_hw: list[int], *_: Any) -> Cost:
    """A few integer additions a position."""
    return Cost(bytes_moved=tensor_bytes(w_bits) + 4 * in_channels * input_hw[0] * input_hw[1])


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Padding, stride, partial words."""
    g = torch.Generator().manual_seed(0)
    cases = (
        (6, 5, 32, 64, [3, 3], [1, 1], [1, 1]),
        (7, 7, 17, 33, [3, 3], [2, 2], [1, 1]),
        (4, 4, 48, 40, [1, 1], [2, 2], [0, 0]),
    )
    for h, w, i, o, kernel, stride, padding in cases:
        weight = to_panels(pack_last_axis(torch.randn(i, *kernel, o, generator=g) > 0).flatten(1))
        yield weight, i, o, [h, w], output_extents([h, w], kernel, stride, padding), kernel, stride, padding


def onnx_attributes(
    w_bits: Tensor,
    in_channels: int,
    out_channels: int,
    input_hw: list[int],
    output_hw: list[int],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
) -> Attributes:
    """Of a transposed convolution."""
    exact_below(out_channels * kernel[0] * kernel[1])
    return {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "output_hw": output_hw,
        **transposed_convolution(input_hw, output_hw, kernel, stride, padding),
    }


def onnx_body(op: Body, w_bits: str) -> str:
    """A transposed convolution of ones."""
    w = onnx_signs_of_weight(op, w_bits, rows="in_channels", columns="out_channels", perm=[3, 0, 1, 2])
    extents = op.shape(1, op.reshape(op.integer("out_channels"), 1), op.integers("output_hw"))
    sums = conv_transpose(op, op("Expand", op.constant(1.0, "float32"), extents), w)
    return op.cast(op("Squeeze", op.channels_last(sums), op.constant([0], "int64")), "int32")


tap_sums = OpSpec(
    "tap_sums",
    OpKind.PRODUCT,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    onnx=OnnxFunction(onnx_body, onnx_attributes),
).register()
