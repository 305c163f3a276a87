"""``fqt::activation_levels``: the quantizer of activations of several bits, and its straight-through gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib import levels
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Attributes, Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, broadcast, zero_with_any

EDGES = (0.0, -0.0, 0.25, -0.25, 0.5, -0.5, 0.75, 1.0, -1.0, 2.0, -2.0, 100.0, -100.0, float("inf"), float("-inf"))
"""Values on and between the borders of grids with spacing 0.5, and values beyond them."""
GRIDS = ((2, True), (4, True), (8, True), (2, False), (3, False), (8, False), (1, False))
"""Bits and sign of the grids in samples."""


@define(
    kind=Kind.ELEMENTWISE, batch=broadcast, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.ELEMENTWISE
)
class ActivationLevels(FqtOp):
    """The level that is nearest to ``x``, see ``ops/lib/levels.py``.

    Signed: ``2 code - M`` with ``code = clamp(floor(x / spacing) + 2^(bits - 1), 0, M)`` and ``M = 2^bits - 1``.
    Unsigned: ``clamp(floor(x / spacing + 1/2), 0, M)``.

    Attributes:
        x: [...] float32.
        spacing: distance of neighbouring values.
        bits: width of a code.
        signed: whether the grid lies around 0, without it; else it begins with 0.

    Returns:
        [...] float32, whole numbers.
    """

    x: Operand
    spacing: float
    bits: int
    signed: bool

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        codes = levels.codes_of(self.x, self.spacing, self.bits, self.signed)
        return levels.levels_of(codes, self.bits, self.signed)

    def fake(self) -> Tensor:
        """Shape rule: a tensor like ``x``."""
        return torch.empty_like(self.x, memory_format=torch.contiguous_format)

    def compute(self) -> te.Tensor:
        """The loop nest: element-wise."""

        def level(*index: Any) -> Any:
            code = levels.codes_compute(self.x[index], self.spacing, self.bits, self.signed)
            largest = tirx.const(float(levels.largest_code(self.bits)), "float32")
            return code + code - largest if self.signed else code

        return te.compute(self.x.shape, level, name="activation_levels")

    def cost(self) -> Cost:
        """The cost: six operations an element."""
        return Cost(flops=6 * self.x.numel(), bytes_moved=2 * tensor_bytes(self.x))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: random values and the edges of the cells, on grids of both kinds."""
        g = torch.Generator().manual_seed(0)
        for bits, signed in GRIDS:
            yield torch.randn(5, 33, generator=g), 0.37, bits, signed
            yield torch.tensor(EDGES), 0.5, bits, signed

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: element-wise; a level is ``factor`` times its code plus ``first``."""
        scaled = op("Mul", levels.codes_onnx(op, self.x), op.float("factor"))
        return op("Add", scaled, op.float("first"))

    def onnx_attributes(self) -> Attributes:
        """The attributes in ONNX: the grid, and how levels come of codes."""
        level = {"factor": 2.0, "first": -float(levels.largest_code(self.bits))}
        return {
            **levels.onnx_attributes(self.spacing, self.bits, self.signed),
            **(level if self.signed else {"factor": 1.0, "first": 0.0}),
        }


@define(
    kind=Kind.ELEMENTWISE,
    batch=broadcast,
    zero=zero_with_any("gradient"),
    sign=ANY_SIGN,
    nan=Nan.UNKNOWN,
    layout=Layout.ELEMENTWISE,
)
class LevelStraightThrough(FqtOp):
    """The gradient where the quantizer did not clamp ``x``, else 0.

    Attributes:
        gradient: [...] float32.
        x: [...] float32, what was quantized.
        spacing: that of the grid.
        bits: width of a code.
        signed: the kind of the grid.

    Returns:
        [...] float32.
    """

    gradient: Operand
    x: Operand
    spacing: float
    bits: int
    signed: bool

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        low, high = levels.passing_range(self.bits, self.signed)
        scaled = self.x * levels.reciprocal(self.spacing)
        return torch.where((scaled >= low) & (scaled < high), self.gradient, 0.0)

    def fake(self) -> Tensor:
        """Shape rule: a tensor like ``gradient``."""
        if self.gradient.shape != self.x.shape:
            raise ValueError(f"gradient {tuple(self.gradient.shape)} and input {tuple(self.x.shape)} differ in shape")
        return torch.empty_like(self.gradient, memory_format=torch.contiguous_format)

    def compute(self) -> te.Tensor:
        """The loop nest: element-wise selection."""
        low, high = (tirx.const(b, "float32") for b in levels.passing_range(self.bits, self.signed))
        factor = tirx.const(levels.reciprocal(self.spacing), "float32")

        def passed(*index: Any) -> Any:
            scaled = self.x[index] * factor
            zero = tirx.const(0.0, "float32")
            return tirx.Select(tirx.all(scaled >= low, scaled < high), self.gradient[index], zero)

        return te.compute(self.x.shape, passed, name="level_straight_through")

    def cost(self) -> Cost:
        """The cost: three operations an element."""
        return Cost(flops=3 * self.x.numel(), bytes_moved=3 * tensor_bytes(self.x))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: random values, and the borders of the range."""
        g = torch.Generator().manual_seed(0)
        for bits, signed in GRIDS:
            yield torch.randn(5, 33, generator=g), torch.randn(5, 33, generator=g), 0.37, bits, signed
            yield torch.ones(len(EDGES)), torch.tensor(EDGES), 0.5, bits, signed

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: element-wise selection."""
        scaled = op("Mul", self.x, op.float("reciprocal"))
        above = op("GreaterOrEqual", scaled, op.float("low"))
        below = op("Less", scaled, op.float("high"))
        return op("Where", op("And", above, below), self.gradient, op.constant(0.0, "float32"))

    def onnx_attributes(self) -> Attributes:
        """The attributes in ONNX: the range, in multiples of the spacing."""
        low, high = levels.passing_range(self.bits, self.signed)
        return {"reciprocal": levels.reciprocal(self.spacing), "low": low, "high": high}
