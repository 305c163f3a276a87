"""``fqt::binary_conv2d``: convolution of signs, as xor and popcount on packed bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib import onnx_bits
from fqt_deploy.ops.lib.convolution_shape import input_position, output_extents
from fqt_deploy.ops.lib.late_modules import onnx, te, tirx
from fqt_deploy.ops.lib.onnx_bits import SIGNS, unpack
from fqt_deploy.ops.lib.onnx_body import Attributes, Body, Reference, element_type, ints
from fqt_deploy.ops.lib.packed_words import (
    PANEL,
    WORD,
    from_panels,
    pack_last_axis,
    panel_count,
    popcount,
    to_panels,
    unpack_last_axis,
    word_count,
)
from fqt_deploy.ops.lib.plain_convolution import plain_convolution
from fqt_deploy.ops.lib.weight_planes import largest_weight, of_planes, weight_planes
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


def signs_of_weight(w_bits: Tensor, in_channels: int, out_channels: int, kernel: list[int]) -> Tensor:
    """The signs of a packed weight, or the levels of one of several planes: [O, I, KH, KW] int64."""
    if w_bits.dim() == 4:
        planes = [signs_of_weight(plane, in_channels, out_channels, kernel) for plane in w_bits]
        return torch.stack([signs << p for p, signs in enumerate(planes)]).sum(0)
    rows = from_panels(w_bits, out_channels)
    taps = rows.view(out_channels, kernel[0], kernel[1], -1)
    return (2 * unpack_last_axis(taps, in_channels) - 1).permute(0, 3, 1, 2)


def result_dtype(in_channels: int, kernel: list[int], largest: int = 1) -> torch.dtype:
    """The narrowest type that holds every possible sum of products of up to ``largest``."""
    return torch.int16 if in_channels * kernel[0] * kernel[1] * largest <= 32767 else torch.int32


def exact_below(largest: int) -> None:
    """Raise ``ValueError`` if float32 cannot count to ``largest``: ONNX Runtime has no fast integer convolution."""
    if largest >= 2**24:
        raise ValueError(f"sums of up to {largest} are not exact in float32")


def onnx_signs_of_weight(op: Body, w_bits: str, *, rows: str, columns: str, perm: list[int]) -> str:
    """Signs of a packed weight, float32: [rows, KH, KW, columns] transposed; rows and columns name attributes."""
    count, channels = (op.reshape(op.integer(name), 1) for name in (rows, columns))
    words = op.reshape(onnx_bits.from_panels(op, w_bits, count), count, op.integers("kernel_shape"), -1)
    return op("Transpose", op.front(unpack(op, words, SIGNS, "float32"), channels, 3), perm=perm)


@define(kind=Kind.PRODUCT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class BinaryConv2d(FqtOp):
    """The convolution ``conv2d(sign(x), sign(w))`` with exact zero padding: a padded tap contributes 0.

    Attributes:
        x_bits: [N, H, W, ceil(I / 32)] int32.
        w_bits: [ceil(O / 16), KH * KW * ceil(I / 32), 16] int32, see ``pack_weight``; with an axis in front of it for
            several planes, whose levels then stand in the place of ``sign(w)``.
        in_channels: I.
        out_channels: O.
        kernel: KH, KW.
        stride: vertical and horizontal.
        padding: zeros above and below, left and right.

    Returns:
        [N, OH, OW, O] int16, or int32 where a sum might not fit.
    """

    x_bits: Operand
    w_bits: Operand
    in_channels: int
    out_channels: int
    kernel: list[int]
    stride: list[int]
    padding: list[int]

    @property
    def largest(self) -> int:
        """Upper bound of the magnitude of a sum."""
        return self.in_channels * self.kernel[0] * self.kernel[1] * largest_weight(self.w_bits)

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest type that holds every possible sum."""
        return result_dtype(self.in_channels, self.kernel, largest_weight(self.w_bits))

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        x = 2 * unpack_last_axis(self.x_bits, self.in_channels) - 1
        w = signs_of_weight(self.w_bits, self.in_channels, self.out_channels, self.kernel)
        # sums of fewer than 2^24 signs are exact in float32
        z = plain_convolution(x.permute(0, 3, 1, 2).float(), w.float(), self.stride, self.padding)
        return z.permute(0, 2, 3, 1).contiguous().to(self.dtype)

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        n, h, w, words = self.x_bits.shape
        expected = (panel_count(self.out_channels), self.kernel[0] * self.kernel[1] * words, PANEL)
        if words != word_count(self.in_channels) or tuple(self.w_bits.shape[-3:]) != expected:
            raise ValueError(
                f"packed shapes {tuple(self.x_bits.shape)}, {tuple(self.w_bits.shape)} "
                f"do not fit {self.in_channels} channels"
            )
        oh, ow = output_extents([h, w], self.kernel, self.stride, self.padding)
        return self.x_bits.new_empty((n, oh, ow, self.out_channels), dtype=self.dtype)

    def compute(self) -> te.Tensor:
        """The loop nest: a word contributes its number of channels minus twice the number of differing bits."""
        n, h, w, words = (int(d) for d in self.x_bits.shape)
        oh, ow = output_extents([h, w], self.kernel, self.stride, self.padding)
        kh, kw = te.reduce_axis((0, self.kernel[0]), "kh"), te.reduce_axis((0, self.kernel[1]), "kw")
        word = te.reduce_axis((0, words), "word")

        def term(b: Any, y: Any, x: Any, o: Any) -> Any:
            inside, at_h, at_w = input_position(y, x, kh, kw, [h, w], self.stride, self.padding)
            place = o // PANEL, (kh * self.kernel[1] + kw) * words + word, o % PANEL
            channels: Any = tirx.min(self.in_channels - word * WORD, WORD) if self.in_channels % WORD else WORD
            code = self.x_bits[b, at_h, at_w, word]
            product = of_planes(self.w_bits, lambda weight: channels - 2 * popcount(code ^ weight(*place)))
            return te.sum(tirx.if_then_else(inside, product, 0), axis=[kh, kw, word])

        total = te.compute((n, oh, ow, self.out_channels), term, name="binary_conv2d_sum")
        dtype = str(self.dtype).removeprefix("torch.")
        return te.compute(total.shape, lambda *i: total[i].astype(dtype), name="binary_conv2d")

    def cost(self) -> Cost:
        """The cost: two bit operations a multiply-accumulate of one plane."""
        y = self.fake()
        work = 2 * weight_planes(self.w_bits) * y.numel() * self.in_channels * self.kernel[0] * self.kernel[1]
        return Cost(bit_ops=work, bytes_moved=tensor_bytes(self.x_bits, self.w_bits, y))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Padding, stride, partial words and panels, one sample, a linear layer, a wide kernel, full AMX tiles."""
        g = torch.Generator().manual_seed(0)
        cases = (
            (2, 6, 5, 64, 32, [3, 3], [1, 1], [1, 1]),
            (3, 7, 7, 33, 17, [3, 3], [2, 2], [1, 1]),
            (1, 4, 4, 128, 48, [1, 1], [2, 2], [0, 0]),
            (1, 1, 9, 70, 10, [1, 1], [1, 1], [0, 0]),
            (2, 2, 2, 32, 16, [3, 3], [1, 1], [1, 1]),
            (2, 9, 8, 40, 20, [5, 3], [1, 2], [2, 1]),
            # tiles of sixteen positions of a row, and of sixteen samples
            (2, 3, 16, 64, 32, [3, 3], [1, 1], [1, 1]),
            (16, 3, 3, 64, 64, [3, 3], [2, 2], [1, 1]),
        )
        for n, h, w, i, o, kernel, stride, padding in cases:
            x = pack_last_axis(torch.randn(n, h, w, i, generator=g) > 0)
            weight = to_panels(pack_last_axis(torch.randn(o, *kernel, i, generator=g) > 0).flatten(1))
            yield x, weight, i, o, kernel, stride, padding

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: a convolution of signs in float32."""
        x = op.front(unpack(op, self.x_bits, SIGNS, "float32"), op.reshape(op.integer("in_channels"), 1), 3)
        w = onnx_signs_of_weight(op, self.w_bits, rows="out_channels", columns="in_channels", perm=[0, 3, 1, 2])
        y = op(
            "Conv",
            op.channels_first(x),
            w,
            kernel_shape=ints("kernel_shape"),
            strides=ints("strides"),
            pads=ints("pads"),
        )
        return op("Cast", op.channels_last(y), to=Reference("to", onnx.AttributeProto.INT))

    def onnx_attributes(self) -> Attributes:
        """The attributes in ONNX; ``to`` is the type of the result."""
        exact_below(self.largest)
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_shape": self.kernel,
            "strides": self.stride,
            "pads": [*self.padding, *self.padding],
            "to": element_type(str(self.dtype).removeprefix("torch.")),
        }
