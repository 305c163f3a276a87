"""``fqt::quantization_grid``: zero point and step of every group, min-max or with zero on the grid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Attributes, Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples

SMALLEST_RANGE = 2.0**-96
"""A group of a smaller range counts as constant: the step, or codes per unit in fixed point, would leave float32."""


@define(kind=Kind.ROOT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class QuantizationGrid(FqtOp):
    """The affine map between values and codes in [0, B], B = 2^bits - 1 (algorithm, section 3).

    ``minmax``: the group's range is B steps. ``zero``: the range, taken to include 0, is B - 1 steps and the zero point
    a whole number of them, so that 0 has a code. A constant group has step 0 and the zero point as its only value;
    so has one whose range is at most ``SMALLEST_RANGE``.

    Attributes:
        low: [G] float32, smallest value of each group.
        high: [G] float32, largest value.
        bits: width of a code.
        grid: ``minmax`` or ``zero`` (at least 2 bits).

    Returns:
        zero: [G] float32, the value of code 0. reciprocal: [G] float32, codes per unit. step: [G] float32.
    """

    low: Operand
    high: Operand
    bits: int
    grid: str

    def reference(self) -> tuple[Tensor, Tensor, Tensor]:
        """The result in plain PyTorch."""
        low, high = self.low, self.high
        levels = 2**self.bits - 1
        if self.grid == "minmax":
            extent = high - low
            constant = extent <= SMALLEST_RANGE
            safe = torch.where(constant, 1.0, extent)
            return low.clone(), torch.where(constant, 0.0, levels / safe), torch.where(constant, 0.0, safe / levels)
        low, high = low.clamp(max=0), high.clamp(min=0)
        extent = high - low
        constant = extent <= SMALLEST_RANGE
        safe = torch.where(constant, 1.0, extent)
        step = safe / (levels - 1)
        below = torch.ceil(-low / step).clamp(max=levels - 1)
        zero = -below * step
        none = torch.zeros_like(low)
        return torch.where(constant, none, zero), torch.where(constant, none, (levels - 1) / safe), \
            torch.where(constant, none, step)  # fmt: skip

    def fake(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shape rule: [G], [G] -> three times [G]."""
        if self.low.shape != self.high.shape or self.low.ndim != 1:
            raise ValueError(
                f"bounds {tuple(self.low.shape)} and {tuple(self.high.shape)} must be two vectors of one length"
            )
        if self.grid not in ("minmax", "zero") or (self.grid == "zero" and self.bits < 2):
            raise ValueError(f"no grid {self.grid!r} of {self.bits} bits")
        return torch.empty_like(self.low), torch.empty_like(self.low), torch.empty_like(self.low)

    def compute(self) -> tuple[te.Tensor, ...]:
        """The loop nest: the operations of the reference in the same order."""
        levels = float(2**self.bits - 1)
        zero_f, one = tirx.const(0.0, "float32"), tirx.const(1.0, "float32")

        def bounds(i: Any) -> tuple[Any, Any, Any]:
            lo = self.low[i] if self.grid == "minmax" else tirx.min(self.low[i], zero_f)
            extent = (self.high[i] if self.grid == "minmax" else tirx.max(self.high[i], zero_f)) - lo
            constant = extent <= tirx.const(SMALLEST_RANGE, "float32")
            return lo, constant, tirx.Select(constant, one, extent)

        steps = levels if self.grid == "minmax" else levels - 1.0

        def zero(i: Any) -> Any:
            lo, constant, safe = bounds(i)
            if self.grid == "minmax":
                return lo
            step = safe / steps
            below = tirx.min(tirx.ceil((zero_f - lo) / step), tirx.const(steps, "float32"))
            return tirx.Select(constant, zero_f, (zero_f - below) * step)

        def reciprocal(i: Any) -> Any:
            _, constant, safe = bounds(i)
            return tirx.Select(constant, zero_f, tirx.const(steps, "float32") / safe)

        def step(i: Any) -> Any:
            _, constant, safe = bounds(i)
            return tirx.Select(constant, zero_f, safe / tirx.const(steps, "float32"))

        stages = (("zero", zero), ("reciprocal", reciprocal), ("step", step))
        return tuple(te.compute(self.low.shape, rule, name=f"quantization_grid_{name}") for name, rule in stages)

    def cost(self) -> Cost:
        """The cost: a few operations a group."""
        return Cost(flops=10 * self.low.numel(), bytes_moved=20 * self.low.numel())

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: both grids, every width, constant, tiny, positive and negative groups."""
        g = torch.Generator().manual_seed(0)
        a, b = torch.randn(37, generator=g), torch.randn(37, generator=g)
        a[:3] = b[:3] = torch.tensor([0.0, 1.5, -2.0])
        a[3], b[3], a[4], b[4] = 0.0, 1e-45, -1e-45, 1e-31
        for bits in (1, 2, 4, 8):
            yield torch.minimum(a, b), torch.maximum(a, b), bits, "minmax"
            if bits > 1:
                yield torch.minimum(a, b), torch.maximum(a, b), bits, "zero"

    def onnx_body(self, op: Body) -> tuple[str, str, str]:
        """The ONNX body: both grids in one: they differ in the bounds, the number of steps and the zero point."""
        low, high = self.low, self.high
        zero, one = op.constant(0.0, "float32"), op.constant(1.0, "float32")
        on_grid = op.integer("zero_on_grid")
        zeroed = op.cast(on_grid, "bool")
        low = op("Where", zeroed, op("Min", low, zero), low)
        high = op("Where", zeroed, op("Max", high, zero), high)
        levels = op(
            "Sub", op("Pow", op.constant(2, "int64"), op.integer("bits")), op("Add", on_grid, op.constant(1, "int64"))
        )
        steps = op.cast(levels, "float32")
        extent = op("Sub", high, low)
        constant = op("LessOrEqual", extent, op.constant(SMALLEST_RANGE, "float32"))
        safe = op("Where", constant, one, extent)
        step = op("Div", safe, steps)
        below = op("Min", op("Ceil", op("Div", op("Neg", low), step)), steps)
        shifted = op("Where", constant, zero, op("Mul", op("Neg", below), step))
        reciprocal = op("Where", constant, zero, op("Div", steps, safe))
        return op("Where", zeroed, shifted, low), reciprocal, op("Where", constant, zero, step)

    def onnx_attributes(self) -> Attributes:
        """The attributes in ONNX: ``zero_on_grid`` says whether the grid is ``zero``."""
        return {"bits": self.bits, "zero_on_grid": self.grid == "zero"}
