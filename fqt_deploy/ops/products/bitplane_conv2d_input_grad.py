"""``fqt::bitplane_conv2d_input_grad``: activation-gradient product of gradient bit-planes and weight signs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input
from tvm import te, tirx

from fqt_deploy.ops.lib.convolution_shape import output_extents, output_position
from fqt_deploy.ops.lib.onnx_bits import BITS, codes_of_planes, unpack
from fqt_deploy.ops.lib.onnx_body import Attributes, Body, OnnxFunction
from fqt_deploy.ops.lib.packed_words import (
    PANEL,
    pack_last_axis,
    panel_count,
    popcount,
    to_panels,
    unpack_last_axis,
    word_count,
)
from fqt_deploy.ops.products.binary_conv2d import exact_below, onnx_signs_of_weight, signs_of_weight
from fqt_deploy.ops.products.conv2d_input_grad import conv_transpose, transposed_convolution
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(
    planes: Tensor,
    w_bits: Tensor,
    in_channels: int,
    out_channels: int,
    input_hw: list[int],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
) -> Tensor:
    """Transposed convolution of integer codes with signs (algorithm, section 3): the sum over valid taps only.

    Args:
        planes: [K, OH, OW, B, ceil(O / 32)] int32: plane p holds bit p of every code.
        w_bits: [ceil(I / 16), KH * KW * ceil(O / 32), 16] int32, see ``transpose_packed_weight``.
        in_channels: I.
        out_channels: O.
        input_hw: height and width of the layer's input.
        kernel: KH, KW.
        stride: of the forward convolution.
        padding: of the forward convolution.

    Returns:
        [K, H, W, I] int32.
    """
    bits = unpack_last_axis(planes, out_channels)
    codes = (bits << torch.arange(planes.shape[3]).view(-1, 1)).sum(3)
    w = signs_of_weight(w_bits, out_channels, in_channels, kernel).transpose(0, 1)
    gradient: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
        (planes.shape[0], in_channels, *input_hw), w.double(), codes.permute(0, 3, 1, 2).double(), stride, padding
    )
    return gradient.permute(0, 2, 3, 1).contiguous().to(torch.int32)


def fake(
    planes: Tensor,
    w_bits: Tensor,
    in_channels: int,
    out_channels: int,
    input_hw: list[int],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
) -> Tensor:
    """Shape rule of ``reference``."""
    k, oh, ow, _, words = planes.shape
    expected = (panel_count(in_channels), kernel[0] * kernel[1] * words, PANEL)
    if words != word_count(out_channels) or tuple(w_bits.shape) != expected:
        raise ValueError(
            f"packed shapes {tuple(planes.shape)}, {tuple(w_bits.shape)} do not fit {out_channels} channels"
        )
    if output_extents(input_hw, kernel, stride, padding) != [oh, ow]:
        raise ValueError(f"a gradient of {oh} x {ow} does not belong to an input of {input_hw}")
    return planes.new_empty((k, *input_hw, in_channels), dtype=torch.int32)


def compute(
    planes: te.Tensor,
    w_bits: te.Tensor,
    in_channels: int,
    out_channels: int,
    input_hw: list[int],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
) -> te.Tensor:
    """A plane's word contributes twice the ones it shares with the weight, minus all its ones."""
    k, oh, ow, bits, words = (int(d) for d in planes.shape)
    kh, kw = te.reduce_axis((0, kernel[0]), "kh"), te.reduce_axis((0, kernel[1]), "kw")
    plane, word = te.reduce_axis((0, bits), "plane"), te.reduce_axis((0, words), "word")

    def term(n: Any, h: Any, w: Any, i: Any) -> Any:
        inside, y, x = output_position(h, w, kh, kw, [oh, ow], stride, padding)
        code = planes[n, y, x, plane, word]
        weight = w_bits[i // PANEL, (kh * kernel[1] + kw) * words + word, i % PANEL]
        product = (2 * popcount(code & weight) - popcount(code)) << plane
        return te.sum(tirx.if_then_else(inside, product, 0), axis=[kh, kw, plane, word])

    return te.compute((k, *input_hw, in_channels), term, name="bitplane_conv2d_input_grad")


def cost(
    planes: Tensor,
    w_bits: Tensor,
    in_channels: int,
    out_channels: int,
    input_hw: list[int],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
) -> Cost:
    """Two bit operations a multiply-accumulate of one plane."""
    k, oh, ow, bits, _ = planes.shape
    work = 2 * k * oh * ow * bits * out_channels * in_channels * kernel[0] * kernel[1]
    result = 4 * k * input_hw[0] * input_hw[1] * in_channels
    return Cost(bit_ops=work, bytes_moved=tensor_bytes(planes, w_bits) + result)


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Every code width, padding, stride, partial words, a linear layer, what fills AMX tiles."""
    g = torch.Generator().manual_seed(0)
    cases = (
        (2, 6, 5, 32, 64, [3, 3], [1, 1], [1, 1], 4),
        (3, 7, 7, 17, 33, [3, 3], [2, 2], [1, 1], 2),
        (1, 4, 4, 48, 40, [1, 1], [2, 2], [0, 0], 1),
        (1, 1, 9, 10, 70, [1, 1], [1, 1], [0, 0], 8),
        (2, 2, 2, 16, 32, [3, 3], [1, 1], [1, 1], 4),
        (2, 3, 16, 32, 64, [3, 3], [1, 1], [1, 1], 3),
        # tiles of sixteen positions of a row, and of sixteen samples
        (2, 3, 16, 32, 64, [3, 3], [1, 1], [1, 1], 2),
        (3, 2, 24, 64, 128, [3, 3], [1, 1], [1, 1], 8),
        (16, 3, 3, 64, 64, [3, 3], [2, 2], [1, 1], 4),
    )
    for k, h, w, i, o, kernel, stride, padding, bits in cases:
        oh, ow = output_extents([h, w], kernel, stride, padding)
        planes = pack_last_axis(torch.randint(0, 2, (k, oh, ow, bits, o), generator=g) > 0)
        weight = to_panels(pack_last_axis(torch.randn(i, *kernel, o, generator=g) > 0).flatten(1))
        yield planes, weight, i, o, [h, w], kernel, stride, padding


def onnx_attributes(
    planes: Tensor,
    w_bits: Tensor,
    in_channels: int,
    out_channels: int,
    input_hw: list[int],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
) -> Attributes:
    """Of a transposed convolution; ``output_padding`` are the image rows and columns that no output reads."""
    exact_below(out_channels * kernel[0] * kernel[1] * (2 ** planes.shape[3] - 1))
    return {
        "in_channels": in_channels,
        "out_channels": out_channels,
        **transposed_convolution(input_hw, list(planes.shape[1:3]), kernel, stride, padding),
    }


def onnx_body(op: Body, planes: str, w_bits: str) -> str:
    """A transposed convolution of codes with signs in float32."""
    bits = op.front(unpack(op, planes, BITS, "float32"), op.reshape(op.integer("out_channels"), 1), 4)
    codes = op.channels_first(codes_of_planes(op, bits, -2))
    w = onnx_signs_of_weight(op, w_bits, rows="in_channels", columns="out_channels", perm=[3, 0, 1, 2])
    return op.cast(op.channels_last(conv_transpose(op, codes, w)), "int32")


bitplane_conv2d_input_grad = OpSpec(
    "bitplane_conv2d_input_grad",
    OpKind.PRODUCT,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    onnx=OnnxFunction(onnx_body, onnx_attributes),
).register()
