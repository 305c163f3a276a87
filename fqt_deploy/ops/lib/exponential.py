"""The exponential function as arithmetic: LLVM has no vector form of it and would call the C library per element."""

from __future__ import annotations

from typing import Any

from fqt_deploy.ops.lib.late_modules import tirx
from fqt_deploy.ops.lib.polynomial import polynomial

LOWEST, HIGHEST = -104.0, 89.0
"""Bounds beyond which the result is 0 or infinity in float32."""
LOWEST_PRECISE = -87.0
"""Bound below which the result has no full precision in float32."""
_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
"""The number ln 2 in two parts: a multiple of the first is exact."""
_COEFFICIENTS = (5.0000001201e-1, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3, 1.9875691500e-4)
"""Coefficients of ``(exp(f) - 1 - f) / f^2`` for ``|f| <= ln 2 / 2`` (Cephes, ``expf``)."""


def exponential(x: Any) -> Any:
    """The exponential of a float32 expression ``x``; relative error below 2e-7, infinities and NaN as usual."""
    bounded = tirx.Select(x > HIGHEST, tirx.const(HIGHEST, "float32"), x)
    bounded = tirx.Select(x < LOWEST, tirx.const(LOWEST, "float32"), bounded)
    mantissa, exponent = _mantissa_and_exponent(bounded)
    # Two factors: their product may overflow or vanish where one power of two could not be written.
    half = exponent >> 1
    return mantissa * _power_of_two(half) * _power_of_two(exponent - half)


def decay(x: Any) -> Any:
    """The exponential of a float32 expression that is not positive, in fewer operations.

    The relative error is below 2e-7 down to ``x = -87``; less gives what -87 does, 1e-38.
    """
    mantissa, exponent = _mantissa_and_exponent(
        tirx.Select(x < LOWEST_PRECISE, tirx.const(LOWEST_PRECISE, "float32"), x)
    )
    return mantissa * _power_of_two(exponent)


def _mantissa_and_exponent(x: Any) -> tuple[Any, Any]:
    """The exponential of ``x`` as a float32 near 1 and an int32 power of two."""
    power = tirx.floor(x * _LOG2_E + 0.5)
    f = x - power * _LN2_HIGH - power * _LN2_LOW
    return polynomial(_COEFFICIENTS, f) * f * f + f + 1.0, power.astype("int32")


def _power_of_two(exponent: Any) -> Any:
    """The power ``2 ** exponent`` for an int32 expression in [-126, 127]."""
    return tirx.reinterpret("float32", (exponent + 127) << 23)
