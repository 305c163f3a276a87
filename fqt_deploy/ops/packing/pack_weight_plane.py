"""``fqt::pack_weight_plane``: one bit of the codes of a weight of several bits, packed for the forward product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib import levels, onnx_bits
from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_body import Attributes, Body
from fqt_deploy.ops.lib.packed_words import bit_of
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.packing.pack_weight import PackWeight, packed_panels
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


def plane_bit(w: Any, reciprocal: Any, bits: int, plane: int) -> Any:
    """The bit of an element, 0 or 1 int32, of its expression and that of its channel's reciprocal."""
    return bit_of(levels.codes_compute(w * reciprocal, 1.0, bits, True).astype("int32"), plane)


@define(kind=Kind.ROOT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class PackWeightPlane(FqtOp):
    """Pack bit ``plane`` of the codes of ``w`` on a signed grid, whose spacing each output channel has of its own.

    A level is a sum of signs, ``2 code - M = sum_p 2^p s_p``: so the planes of a weight are weights of signs.

    Attributes:
        w: [O, I, KH, KW] float32.
        reciprocals: [O] float32, one over the spacing.
        bits: width of a code.
        plane: which of its bits, the lowest is 0.

    Returns:
        [ceil(O / 16), KH * KW * ceil(I / 32), 16] int32, see ``pack_weight``.
    """

    w: Operand
    reciprocals: Operand
    bits: int
    plane: int

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        codes = levels.codes_of(self.w * self.reciprocals.view(-1, 1, 1, 1), 1.0, self.bits, True).long()
        return PackWeight(((codes >> self.plane) & 1).float()).reference()

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        if self.w.ndim != 4 or tuple(self.reciprocals.shape) != (self.w.shape[0],) or not 0 <= self.plane < self.bits:
            raise ValueError(
                f"expected [O, I, KH, KW] and [O], got {tuple(self.w.shape)} and {tuple(self.reciprocals.shape)}, "
                f"and plane {self.plane} of {self.bits}"
            )
        return PackWeight(self.w).fake()

    def compute(self) -> te.Tensor:
        """The loop nest: words of bits of the channels' codes; bits past the last channel are 0."""

        def bit(row: Any, *at: Any) -> Any:
            return plane_bit(self.w[(row, *at)], self.reciprocals[row], self.bits, self.plane)

        return packed_panels([int(d) for d in self.w.shape], bit, "pack_weight_plane")

    def cost(self) -> Cost:
        """The cost: six operations an element."""
        return Cost(flops=6 * self.w.numel(), bytes_moved=tensor_bytes(self.w) + self.w.numel() // 8)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: whole and partial panels and words, every plane of 2 and 4 bits, a channel of zeros."""
        g = torch.Generator().manual_seed(0)
        for shape in ((32, 64, 3, 3), (10, 33, 3, 2), (32, 64, 1, 1)):
            w = torch.randn(shape, generator=g)
            w[1] = 0.0
            for bits in (2, 4):
                spacing = levels.WEIGHT_SPACINGS[bits] * w.abs().mean([1, 2, 3])
                for plane in range(bits):
                    yield w, spacing.reciprocal(), bits, plane

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: codes, one of their bits, channels last, pack, interleave rows."""
        scale = op.reshape(self.reciprocals, -1, 1, 1, 1)
        codes = levels.codes_onnx(op, op("Mul", self.w, scale))
        halved = op("Floor", op("Mul", codes, op.float("share")))
        two = op.constant(2.0, "float32")
        bit = op("Sub", halved, op("Mul", two, op("Floor", op("Mul", halved, op.constant(0.5, "float32")))))
        rows = op("Transpose", op("Greater", bit, op.constant(0.0, "float32")), perm=[0, 2, 3, 1])
        return onnx_bits.to_panels(op, op("Flatten", onnx_bits.pack(op, rows), axis=1))

    def onnx_attributes(self) -> Attributes:
        """The attributes in ONNX: the grid, and what a code is multiplied by to drop the bits below the plane."""
        return {**levels.onnx_attributes(1.0, self.bits, True), "share": 0.5**self.plane}
