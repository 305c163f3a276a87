"""Moments of an optimizer in 8 bits: floats with few bits, whose exponent counts down from the largest of a block.

A block of neighbouring elements has one scale, float32, and each element a code. With ``y = 1 + |x| / scale`` the code
is the exponent of ``y`` and the first three bits of its fraction: codes are even steps near zero, and an eighth of a
power of two beyond. The largest of the block has the last code.

- *Mean*: a sign and 7 bits, for ``y`` up to 2^16: of the largest mean down to 2^-19.
- *Square*: 8 bits, for ``y`` up to 2^32: of the largest square down to 2^-35, of its root to 2^-17.5.

**Rounding is stochastic, and unbiased**: ``y`` between two codes becomes either, with the probability that keeps the
expectation. Rounding to the nearest would not do: a square falls by a thousandth in a step, an eighth apart from the
next code, and would never fall at all.

**No update explodes.** An update is a mean over the root of a square. Where the square is not zero, its code is not
(``least`` below); where it is zero, so were all gradients, and the mean, whose code is exactly zero then. The smallest
mean but zero is 2^-19 of the largest of its block, the root of the smallest square 2^-17.5 of the largest; and no mean
is more than ``(1 - beta1) / sqrt((1 - beta2) (1 - beta1^2 / beta2))`` times its root, 7.3 with Adam's own rates. So one
step of a mean's code, over one of a square's, is at most 2.6 such updates.

All is exact: sums, products and quotients of float32, each rounded once, and their bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fqt_deploy.ops.lib.counter_random import uint32
from fqt_deploy.ops.lib.float32 import opaque
from fqt_deploy.ops.lib.late_modules import tirx
from fqt_deploy.ops.lib.onnx_bits import shift_right
from fqt_deploy.ops.lib.onnx_body import Body

FRACTION = 20
"""Bits of a float32 behind those that are kept of it."""
LEAST = 2.0**-80
"""What the largest of a block counts as at least: quotients and decoded values are then normal numbers."""
_ONE = 0x3F800000
"""The bits of 1.0."""
_SIGN = 0x80
_PARTS = (16, 8, 4, 2, 1)
"""Exponents that a binary search for that of ``y`` tries, in ONNX, which has no bits of floats."""


@dataclass(frozen=True)
class MomentCode:
    """The code of one kind of moment.

    Attributes:
        signed: the highest bit is a sign.
        shift: where the noise of this moment begins in the random number of its element.
    """

    signed: bool
    shift: int

    @property
    def last(self) -> int:
        """The largest code, without a sign."""
        return 127 if self.signed else 255

    @property
    def range(self) -> float:
        """What the last code stands for, over the scale."""
        return float(self.table()[self.last])

    def table(self) -> np.ndarray:
        """What each of the 256 codes stands for, over the scale; float32."""
        codes = np.arange(256, dtype=np.int32)
        values = (((codes & self.last) << FRACTION) + _ONE).view(np.float32) - np.float32(1)
        return np.where(codes > self.last, -values, values)

    def decoded(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Reference: the values of ``codes``, uint8; ``scale`` broadcasts."""
        return torch.from_numpy(self.table())[codes.int()] * scale

    def encoded(self, values: Tensor, largest: Tensor, random: Tensor) -> Tensor:
        """Reference: the codes of ``values``, uint8; ``largest`` broadcasts, ``random`` is int64 in [0, 2^32)."""
        above = 1 + values.abs() * (self.range / largest)
        noise = ((random >> self.shift) & 0xFFFF) * 16 + 8
        codes = ((above.view(torch.int32).long() - _ONE + noise) >> FRACTION).clamp(max=self.last)
        if self.signed:
            return torch.where(values < 0, codes | _SIGN, codes).to(torch.uint8)
        return torch.where((codes == 0) & (values > 0), 1, codes).to(torch.uint8)

    def scale(self, largest: Any) -> Any:
        """The scale of a block, float32, from its ``largest``, in PyTorch and in loop nests."""
        return largest * float(np.float32(1 / self.range))

    def te_decoded(self, code: Any, scale: Any) -> Any:
        """Loop nest: the value of ``code``, uint8."""
        wide = code.astype("int32")
        bits = ((wide & _int32(self.last)) << _int32(FRACTION)) + _int32(_ONE)
        value = opaque(tirx.reinterpret("float32", bits)) - tirx.const(1.0, "float32")
        if self.signed:
            sign = (wide & _int32(_SIGN)) << _int32(24)
            value = tirx.reinterpret("float32", tirx.reinterpret("int32", value) | sign)
        return value * scale

    def te_inverse(self, largest: Any) -> Any:
        """Loop nest: what values are multiplied with to be encoded."""
        return tirx.const(self.range, "float32") / largest

    def te_encoded(self, value: Any, inverse: Any, random: Any) -> Any:
        """Loop nest: the code of ``value``; ``inverse`` is that of ``te_inverse``, ``random`` of type uint32."""
        above = tirx.const(1.0, "float32") + tirx.abs(value) * inverse
        noise = ((random >> uint32(self.shift)) & uint32(0xFFFF)) * uint32(16) + uint32(8)
        bits = tirx.reinterpret("int32", above) + (noise.astype("int32") - _int32(_ONE))
        code = tirx.min(bits >> _int32(FRACTION), _int32(self.last))
        zero, positive = tirx.const(0.0, "float32"), _int32(0)
        if self.signed:
            return (code | tirx.Select(value < zero, _int32(_SIGN), positive)).astype("uint8")
        return tirx.max(code, tirx.Select(value > zero, _int32(1), positive)).astype("uint8")

    def onnx_decoded(self, op: Body, codes: str, scale: str) -> str:
        """ONNX: the values of ``codes``, uint8; ``scale`` broadcasts."""
        return op("Mul", op("Gather", op.constant(self.table(), "float32"), op.cast(codes, "int32"), axis=0), scale)

    def onnx_encoded(self, op: Body, values: str, largest: str, random: str) -> str:
        """ONNX: the codes of ``values``, uint8; ``largest`` broadcasts, ``random`` is uint32.

        ONNX knows no bits of floats: halving ``y`` until it is below 2 finds its exponent. Fraction and noise have no
        more bits than float32 holds.
        """
        one, zero = op.constant(1.0, "float32"), op.constant(0.0, "float32")
        inverse = op("Div", op.constant(self.range, "float32"), largest)
        above, exponent = op("Add", op("Mul", op("Abs", values), inverse), one), zero
        for part in _PARTS:
            beyond = op("GreaterOrEqual", above, op.constant(2.0**part, "float32"))
            above = op("Where", beyond, op("Mul", above, op.constant(2.0**-part, "float32")), above)
            exponent = op("Add", exponent, op("Where", beyond, op.constant(part, "float32"), zero))
        eight = op.constant(2.0 ** (23 - FRACTION), "float32")
        bits = op("BitwiseAnd", shift_right(op, random, self.shift), op.constant(0xFFFF, "uint32"))
        noise = op(
            "Mul", op("Add", op.cast(bits, "float32"), op.constant(0.5, "float32")), op.constant(2.0**-16, "float32")
        )
        steps = op("Floor", op("Add", op("Mul", op("Sub", above, one), eight), noise))
        codes = op("Min", op("Add", op("Mul", exponent, eight), steps), op.constant(self.last, "float32"))
        if self.signed:
            sign = op("Where", op("Less", values, zero), op.constant(_SIGN, "float32"), zero)
            return op.cast(op("Add", codes, sign), "uint8")
        return op.cast(op("Max", codes, op.cast(op("Greater", values, zero), "float32")), "uint8")


MEAN = MomentCode(signed=True, shift=0)
"""The code of a running mean of gradients."""
SQUARE = MomentCode(signed=False, shift=16)
"""The code of a running mean of squares."""


def _int32(value: int) -> Any:
    return tirx.const(value, "int32")
