"""Moments of an optimizer in 8 bits: floats with few bits, whose exponent counts down from the largest of a block.

A block of neighbouring elements has one scale, float32, and each element a code. Of ``y = offset + |x| / scale``, which
is at least 2, the code has the low bits of the exponent and the first three of the fraction: codes are even steps near
zero, and an eighth of a power of two beyond. The largest of the block comes to the last code.

- *Mean*: a sign and 7 bits, for ``y`` up to 2^17: of the largest mean down to 2^-19. The offset is 2: zero has a code.
- *Square*: 8 bits, for ``y`` up to 2^33: of the largest square down to 2^-35, of its root to 2^-17.5. The offset is a
  step less: the first code is the least square, and smaller ones count as that.

The exponent of a float32 is 128 where ``y`` is 2, a multiple of 32: all bits above a code's own are the same for every
code, so bits of floats become codes, and codes bits, by a shift.

**Rounding is stochastic, and unbiased**: ``y`` between two codes becomes either, with the probability that keeps the
expectation. Rounding to the nearest would not do: a square falls by a thousandth in a step, an eighth apart from the
next code, and would never fall at all. An element has one random number for both: the lower 20 bits for the mean, the
upper 20 for the square, whose last 8 are the mean's first. So each is exact to a millionth of a step, and the chance
that one is rounded up depends on the other by at most 2^-12.

**No update explodes.** An update is a mean over the root of a square. No square is less than 2^-35 of the largest of
its block, no root less than 2^-17.5 of it; the smallest mean but zero is 2^-19 of the largest; and no mean is more
than ``(1 - beta1) / sqrt((1 - beta2) (1 - beta1^2 / beta2))`` times its root, 7.3 with Adam's own rates. So one
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

FORMAT = 2
"""What checkpoints know the codes by: another number whenever codes or blocks come to mean something else."""
FRACTION = 20
"""Bits of a float32 behind those that are kept of it."""
LEAST = 2.0**-80
"""What the largest of a block counts as at least: quotients and decoded values are then normal numbers."""
_TWO = 0x40000000
"""The bits of 2.0."""
_SIGN = 0x80
_NEGATIVE = -0x80000000
"""The sign of a float32, as an int32."""
_NOISE = (1 << FRACTION) - 1
_PARTS = (16, 8, 4, 2, 1)
"""Exponents that a binary search for that of ``y`` tries, in ONNX, which has no bits of floats."""


@dataclass(frozen=True)
class MomentCode:
    """The code of one kind of moment.

    Attributes:
        signed: the highest bit is a sign.
        offset: what is added to a value over its scale: 2, where zero has a code.
        shift: where the noise of this moment begins in the random number of its element.
    """

    signed: bool
    offset: float
    shift: int

    @property
    def last(self) -> int:
        """The largest code, without a sign."""
        return 127 if self.signed else 255

    @property
    def range(self) -> float:
        """What the largest of a block is over the scale.

        A little less than the last code stands for: whatever is rounded, and noise is added, no code comes behind it.
        """
        return float(np.float32(self.table()[self.last]) * np.float32(1 - 2**-22))

    def table(self) -> np.ndarray:
        """What each of the 256 codes stands for, over the scale; float32."""
        codes = np.arange(256, dtype=np.int32)
        sizes = (((codes & self.last) << FRACTION) + _TWO).view(np.float32) - np.float32(self.offset)
        return np.where(codes > self.last, np.float32(0) - sizes, sizes)

    def decoded(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Reference: the values of ``codes``, uint8; ``scale`` broadcasts."""
        return torch.from_numpy(self.table())[codes.int()] * scale

    def encoded(self, values: Tensor, largest: Tensor, random: Tensor) -> Tensor:
        """Reference: the codes of ``values``, uint8; ``largest`` broadcasts, ``random`` is int64 in [0, 2^32)."""
        above = (self.offset + values.abs() * (self.range / largest)).clamp(min=2.0)
        noise = (random >> self.shift) & _NOISE
        codes = ((above.view(torch.int32).long() + noise) >> FRACTION) & self.last
        return (torch.where(values < 0, codes | _SIGN, codes) if self.signed else codes).to(torch.uint8)

    def scale(self, largest: Any) -> Any:
        """The scale of a block, float32, from its ``largest``, in PyTorch and in loop nests."""
        return largest * float(np.float32(1 / self.range))

    def te_decoded(self, code: Any, scale: Any) -> Any:
        """Loop nest: the value of ``code``, uint8."""
        wide = (code.astype("int8") if self.signed else code).astype("int32") << _int32(FRACTION)
        offset = tirx.const(self.offset, "float32")
        if self.signed:  # above the code all bits are the sign
            offset = tirx.reinterpret("float32", (wide & _int32(_NEGATIVE)) | _int32(_TWO))
            wide = wide & _int32(_NEGATIVE | (self.last << FRACTION))
        return (opaque(tirx.reinterpret("float32", wide | _int32(_TWO))) - offset) * scale

    def te_inverse(self, largest: Any) -> Any:
        """Loop nest: what values are multiplied with to be encoded."""
        return tirx.const(self.range, "float32") / largest

    def te_encoded(self, value: Any, inverse: Any, random: Any) -> Any:
        """Loop nest: the code of ``value``; ``inverse`` is that of ``te_inverse``, ``random`` of type uint32."""
        size = tirx.abs(value) if self.signed else value
        bits = tirx.reinterpret("int32", tirx.const(self.offset, "float32") + size * inverse)
        if self.offset < 2:
            bits = tirx.max(bits, _int32(_TWO))
        noise = (random >> uint32(self.shift)) & uint32(_NOISE)
        code = (bits + noise.astype("int32")) >> _int32(FRACTION)
        if self.signed:
            code = code | tirx.Select(value < tirx.const(0.0, "float32"), _int32(_SIGN), _int32(0))
        return code.astype("uint8")

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
        sizes = op("Add", op("Mul", op("Abs", values), inverse), op.constant(self.offset, "float32"))
        above = op("Max", op("Mul", sizes, op.constant(0.5, "float32")), one)
        exponent = zero
        for part in _PARTS:
            beyond = op("GreaterOrEqual", above, op.constant(2.0**part, "float32"))
            above = op("Where", beyond, op("Mul", above, op.constant(2.0**-part, "float32")), above)
            exponent = op("Add", exponent, op("Where", beyond, op.constant(part, "float32"), zero))
        eight = op.constant(2.0 ** (23 - FRACTION), "float32")
        bits = op("BitwiseAnd", shift_right(op, random, self.shift), op.constant(_NOISE, "uint32"))
        noise = op("Mul", op.cast(bits, "float32"), op.constant(2.0**-FRACTION, "float32"))
        steps = op("Floor", op("Add", op("Mul", op("Sub", above, one), eight), noise))
        codes = op("Add", op("Mul", exponent, eight), steps)
        if self.signed:
            sign = op("Where", op("Less", values, zero), op.constant(_SIGN, "float32"), zero)
            codes = op("Add", codes, sign)
        return op.cast(codes, "uint8")


MEAN = MomentCode(signed=True, offset=2.0, shift=0)
"""The code of a running mean of gradients."""
SQUARE = MomentCode(signed=False, offset=1.75, shift=12)
"""The code of a running mean of squares."""


def _int32(value: int) -> Any:
    return tirx.const(value, "int32")
