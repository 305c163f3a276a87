"""``fqt::level_conv2d``: convolution of activations of several bits with weight signs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib import levels
from fqt_deploy.ops.lib.convolution_shape import input_position, output_extents
from fqt_deploy.ops.lib.late_modules import onnx, te, tirx
from fqt_deploy.ops.lib.onnx_bits import BITS, codes_of_planes, unpack
from fqt_deploy.ops.lib.onnx_body import Attributes, Body, Reference, element_type, ints
from fqt_deploy.ops.lib.packed_words import (
    PANEL,
    WORD,
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
from fqt_deploy.ops.products.binary_conv2d import exact_below, onnx_signs_of_weight, signs_of_weight
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.PRODUCT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class LevelConv2d(FqtOp):
    """The convolution of levels with ``sign(w)`` and exact zero padding: a padded tap contributes 0.

    Attributes:
        planes: [N, H, W, B, ceil(I / 32)] int32, see ``pack_levels``.
        w_bits: [ceil(O / 16), KH * KW * ceil(I / 32), 16] int32, see ``pack_weight``; with an axis in front of it for
            several planes, whose levels then stand in the place of ``sign(w)``.
        in_channels: I.
        out_channels: O.
        kernel: KH, KW.
        stride: vertical and horizontal.
        padding: zeros above and below, left and right.
        signed: the kind of the grid.

    Returns:
        [N, OH, OW, O] int16, or int32 where a sum might not fit.
    """

    planes: Operand
    w_bits: Operand
    in_channels: int
    out_channels: int
    kernel: list[int]
    stride: list[int]
    padding: list[int]
    signed: bool

    @property
    def bits(self) -> int:
        """Width of a code."""
        return int(self.planes.shape[3])

    @property
    def largest(self) -> int:
        """Upper bound of the magnitude of a sum."""
        largest = levels.largest_code(self.bits) * largest_weight(self.w_bits)
        return self.in_channels * self.kernel[0] * self.kernel[1] * largest

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest type that holds every possible sum."""
        return torch.int16 if self.largest <= 32767 else torch.int32

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        bits = unpack_last_axis(self.planes, self.in_channels)
        codes = (bits << torch.arange(self.bits).view(-1, 1)).sum(3)
        x = levels.levels_of(codes, self.bits, self.signed).permute(0, 3, 1, 2)
        w = signs_of_weight(self.w_bits, self.in_channels, self.out_channels, self.kernel)
        float_type = torch.float32 if self.largest < 2**24 else torch.float64  # exact
        z = plain_convolution(x.to(float_type), w.to(float_type), self.stride, self.padding)
        return z.permute(0, 2, 3, 1).contiguous().to(self.dtype)

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        n, h, w, _, words = self.planes.shape
        expected = (panel_count(self.out_channels), self.kernel[0] * self.kernel[1] * words, PANEL)
        if words != word_count(self.in_channels) or tuple(self.w_bits.shape[-3:]) != expected:
            raise ValueError(
                f"packed shapes {tuple(self.planes.shape)}, {tuple(self.w_bits.shape)} "
                f"do not fit {self.in_channels} channels"
            )
        oh, ow = output_extents([h, w], self.kernel, self.stride, self.padding)
        return self.planes.new_empty((n, oh, ow, self.out_channels), dtype=self.dtype)

    def compute(self) -> te.Tensor:
        """The loop nest: the sum of all planes' products with the signs, each plane one of signs or of bits."""
        n, h, w, bits, words = (int(d) for d in self.planes.shape)
        oh, ow = output_extents([h, w], self.kernel, self.stride, self.padding)
        kh, kw = te.reduce_axis((0, self.kernel[0]), "kh"), te.reduce_axis((0, self.kernel[1]), "kw")
        plane, word = te.reduce_axis((0, bits), "plane"), te.reduce_axis((0, words), "word")

        def term(b: Any, y: Any, x: Any, o: Any) -> Any:
            inside, at_h, at_w = input_position(y, x, kh, kw, [h, w], self.stride, self.padding)
            code = self.planes[b, at_h, at_w, plane, word]
            place = o // PANEL, (kh * self.kernel[1] + kw) * words + word, o % PANEL
            channels: Any = tirx.min(self.in_channels - word * WORD, WORD) if self.in_channels % WORD else WORD
            if self.signed:
                product = of_planes(self.w_bits, lambda weight: channels - 2 * popcount(code ^ weight(*place)))
            else:
                ones = popcount(code)
                product = of_planes(self.w_bits, lambda weight: 2 * popcount(code & weight(*place)) - ones)
            return te.sum(tirx.if_then_else(inside, product << plane, 0), axis=[kh, kw, plane, word])

        total = te.compute((n, oh, ow, self.out_channels), term, name="level_conv2d_sum")
        dtype = str(self.dtype).removeprefix("torch.")
        return te.compute(total.shape, lambda *i: total[i].astype(dtype), name="level_conv2d")

    def cost(self) -> Cost:
        """The cost: two bit operations a multiply-accumulate of one plane."""
        y = self.fake()
        work = (
            2 * self.bits * weight_planes(self.w_bits) * y.numel() * self.in_channels * self.kernel[0] * self.kernel[1]
        )
        return Cost(bit_ops=work, bytes_moved=tensor_bytes(self.planes, self.w_bits, y))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: both grids and every width, padding, stride, partial words, a linear layer, full AMX tiles."""
        g = torch.Generator().manual_seed(0)
        cases = (
            (2, 6, 5, 64, 32, [3, 3], [1, 1], [1, 1], 2, True),
            (2, 6, 5, 64, 32, [3, 3], [1, 1], [1, 1], 4, False),
            (3, 7, 7, 33, 17, [3, 3], [2, 2], [1, 1], 2, True),
            (3, 7, 7, 33, 48, [3, 3], [2, 2], [1, 1], 3, True),
            (1, 4, 4, 128, 48, [1, 1], [2, 2], [0, 0], 4, True),
            (1, 1, 9, 70, 32, [1, 1], [1, 1], [0, 0], 8, True),
            (1, 1, 9, 70, 10, [1, 1], [1, 1], [0, 0], 8, False),
            (2, 2, 2, 32, 16, [3, 3], [1, 1], [1, 1], 4, True),
            (2, 9, 8, 40, 32, [5, 3], [1, 2], [2, 1], 1, False),
            (2, 9, 8, 40, 32, [5, 3], [1, 2], [2, 1], 4, True),
            # tables are used often enough: several panels and taps
            (2, 3, 16, 64, 64, [3, 3], [1, 1], [1, 1], 3, True),
            (2, 5, 16, 96, 64, [3, 3], [2, 2], [1, 1], 4, False),
            # tiles of sixteen positions of a row, and of sixteen samples
            (2, 3, 16, 64, 32, [3, 3], [1, 1], [1, 1], 2, True),
            (16, 3, 3, 64, 64, [3, 3], [2, 2], [1, 1], 4, True),
            (16, 3, 3, 64, 64, [3, 3], [2, 2], [1, 1], 8, False),
            # products of matrices, with rows that leave a tile filled in part
            (1, 1, 197, 128, 64, [1, 1], [1, 1], [0, 0], 4, True),
            (2, 21, 17, 64, 32, [1, 1], [2, 2], [0, 0], 2, False),
        )
        for n, h, w, i, o, kernel, stride, padding, bits, signed in cases:
            planes = pack_last_axis(torch.randint(0, 2, (n, h, w, bits, i), generator=g) > 0)
            weight = to_panels(pack_last_axis(torch.randn(o, *kernel, i, generator=g) > 0).flatten(1))
            yield planes, weight, i, o, kernel, stride, padding, signed

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: a convolution of levels with signs in float32."""
        bits = op.front(unpack(op, self.planes, BITS, "float32"), op.reshape(op.integer("in_channels"), 1), 4)
        scaled = op("Mul", codes_of_planes(op, bits, -2), op.float("factor"))
        x = op("Add", scaled, op.float("first"))
        w = onnx_signs_of_weight(op, self.w_bits, rows="out_channels", columns="in_channels", perm=[0, 3, 1, 2])
        shape = {"kernel_shape": ints("kernel_shape"), "strides": ints("strides"), "pads": ints("pads")}
        return op(
            "Cast",
            op.channels_last(op("Conv", op.channels_first(x), w, **shape)),
            to=Reference("to", onnx.AttributeProto.INT),
        )

    def onnx_attributes(self) -> Attributes:
        """The attributes in ONNX; ``to`` is the result's type, a level is ``factor`` times its code plus ``first``."""
        exact_below(self.largest)
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_shape": self.kernel,
            "strides": self.stride,
            "pads": [*self.padding, *self.padding],
            "factor": 2.0 if self.signed else 1.0,
            "first": -float(levels.largest_code(self.bits)) if self.signed else 0.0,
            "to": element_type(str(self.dtype).removeprefix("torch.")),
        }
