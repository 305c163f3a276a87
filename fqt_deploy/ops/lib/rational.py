"""Odd functions with an asymptote as quotients of two polynomials: fewer operations than by an exponential.

``x P(x^2) / Q(x^2)`` approaches such a function on both sides of 0 with a small relative error near 0, where a formula
that subtracts from the asymptote loses digits, and the two polynomials are computed side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fqt_deploy.ops.lib.late_modules import tirx
from fqt_deploy.ops.lib.polynomial import polynomial


@dataclass(frozen=True)
class OddRational:
    """An odd function: ``x P(x^2) / Q(x^2)`` up to ``bound``, and its value there beyond.

    Attributes:
        bound: where the function reaches its asymptote in float32.
        numerator, denominator: coefficients of P and Q, those of the lowest powers first.
    """

    bound: float
    numerator: tuple[float, ...]
    denominator: tuple[float, ...]

    def __call__(self, x: Any) -> Any:
        """The value of a float32 expression; NaN stays."""
        inside = within(x, self.bound)
        square = inside * inside
        return inside * polynomial(self.numerator, square) / polynomial(self.denominator, square)


def within(x: Any, bound: float) -> Any:
    """The float32 expression ``x``, or ``bound`` with its sign if it lies beyond; NaN stays."""
    low, high = (tirx.const(value, "float32") for value in (-bound, bound))
    below = tirx.Select(x > high, high, x)
    return tirx.Select(below < low, low, below)


ERF = OddRational(
    4.0,
    (
        -1.60960333262415e-02, -2.95459980854025e-03, -7.34990630326855e-04, -5.69250639462346e-05,
        -2.10102402082508e-06, 2.77068142495902e-08, -2.72614225801306e-10,
    ),
    (-1.42647390514189e-02, -7.37332916720468e-03, -1.68282697438203e-03, -2.13374055278905e-04, -1.45660718464996e-05),
)  # fmt: skip
"""The error function with the coefficients of Eigen's ``erf`` of float32; it exceeds 1 by up to 4e-7."""
GELU_SLOPE = OddRational(
    5.7,
    (
        0.7978853583, -0.03099189421, 0.01422951836, 1.932152077e-05, 3.59455388e-05, 1.927893455e-07,
    ),
    (1.0, 0.2944989765, 0.04098093144, 0.003522970363, 0.0001920403322, 8.947958773e-06),
)  # fmt: skip
"""The derivative of GELU less 1/2, a fit of least largest error (1.1e-7, by Lawson's reweighted least squares)."""
