"""Levels that activations and weights are quantized to: small integers, times one unit for a layer or a channel.

With a bits there are codes from 0 to ``M = 2^a - 1``. A *signed* grid has the odd levels ``2 code - M``, a sum of
planes of signs, ``sum_p 2^p s_p``; its unit is half the spacing. An unsigned grid has the levels ``code``, a sum of
planes of bits; its unit is the spacing. A code is a level's number in both: what is packed is the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.lib.packed_words import WORD, word_count

WEIGHT_SPACINGS = {2: 1.2483, 4: 0.4204}
"""Spacing of a weight's signed grid with the least mean square error for normally distributed values, in their mean
magnitudes, by bits.
"""
SMALLEST_SPACING = 2.0**-100
"""Lower bound of a weight's spacing, whose reciprocal is finite: gradients pass where a channel begins with zeros."""


def weight_grid(mean_magnitude: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """One over the spacing of the grid of each output channel of a weight, and what level 1 stands for.

    Args:
        mean_magnitude: of the channel's weights, [O] float32, see ``weight_scale``.
        bits: of a code, more than 1.
    """
    spacing = mean_magnitude * WEIGHT_SPACINGS[bits]
    return spacing.clamp(SMALLEST_SPACING).reciprocal(), mean_magnitude * (WEIGHT_SPACINGS[bits] / 2)


def largest_code(bits: int) -> int:
    """The largest code of ``bits`` bits."""
    return (1 << bits) - 1


def reciprocal(spacing: float) -> float:
    """One over ``spacing``, in float32: what every target multiplies with."""
    return float(np.float32(1) / np.float32(spacing))


def codes_of(x: Tensor, spacing: float, bits: int, signed: bool) -> Tensor:
    """The codes of ``x``, [...] float32 of whole numbers; that of NaN is 0."""
    scaled = x * reciprocal(spacing)  # in place from here on: it is the memory that takes time
    code = scaled.floor_().add_(float(1 << (bits - 1))) if signed else scaled.add_(0.5).floor_()
    return torch.where(code.clamp_(max=largest_code(bits)) > 0, code, 0.0)


def codes_compute(x: Any, spacing: float, bits: int, signed: bool) -> Any:
    """The code of a scalar expression, float32, as ``codes_of`` computes it."""
    scaled = x * tirx.const(reciprocal(spacing), "float32")
    if signed:
        code = tirx.floor(scaled) + tirx.const(float(1 << (bits - 1)), "float32")
    else:
        code = tirx.floor(scaled + tirx.const(0.5, "float32"))
    largest, zero = (tirx.const(float(bound), "float32") for bound in (largest_code(bits), 0))
    return tirx.Select(code > zero, tirx.Select(code < largest, code, largest), zero)


def codes_onnx(op: Body, x: str) -> str:
    """The codes of ``x`` in ONNX, float32; the attributes are those of ``onnx_attributes``."""
    scaled = op("Mul", x, op.float("reciprocal"))
    shifted = op("Add", scaled, op.float("before"))
    code = op("Add", op("Floor", shifted), op.float("behind"))
    largest, zero = op.float("largest"), op.constant(0.0, "float32")
    return op("Where", op("Greater", code, zero), op("Min", code, largest), zero)


def onnx_attributes(spacing: float, bits: int, signed: bool) -> dict[str, Any]:
    """The attributes of a quantizer in ONNX: what is added before and behind the floor is 0 for one of the grids."""
    return {
        "reciprocal": reciprocal(spacing),
        "before": 0.0 if signed else 0.5,
        "behind": float(1 << (bits - 1)) if signed else 0.0,
        "largest": float(largest_code(bits)),
    }


def passing_range(bits: int, signed: bool) -> tuple[float, float]:
    """The multiples of the spacing between which no value is clamped: from the first, less than the second."""
    half = float(1 << (bits - 1))
    return (-half, half) if signed else (-0.5, largest_code(bits) + 0.5)


def levels_of(codes: Tensor, bits: int, signed: bool) -> Tensor:
    """The levels of codes."""
    return 2 * codes - largest_code(bits) if signed else codes


def unit(spacing: float, signed: bool) -> float:
    """The value of level 1."""
    return float(np.float32(spacing / 2 if signed else spacing))


def plane_channels(channels: int) -> int:
    """The channels of one plane, with those that fill its last word."""
    return WORD * word_count(channels)
