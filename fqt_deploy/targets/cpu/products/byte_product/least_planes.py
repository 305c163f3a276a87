"""Of how many planes a weight must be for one product of bytes to be faster than a product for each plane.

Measured on an Emerald Rapids, told to be each of these processors: 64 products an instruction take 1.3 to 1.7 times as
long as codes of four bits and signs by table, and 1.2 to 1.5 times as long as by shuffles of 512 bits. AVX2 and
AVX-VNNI multiply half as many bytes or fewer, in 2 to 3 times of what shuffles take. Codes of one bit are counted
faster. Codes of eight bits are two digits for tables and shuffles, eight planes where they are a gradient's.
"""

from __future__ import annotations

from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.byte_product.multiplier import ByteMultiplier, byte_multiplier
from fqt_deploy.targets.cpu.products.digits import DIGIT_BITS

MINIMUM_POSITIONS = 16
"""Least positions of a result: fewer hardly use what a weight is made, and leave tiles empty."""
NEVER = 5
"""More planes than a weight has."""


def levels_pay(features: CpuFeatures, bits: int, weight_planes: int) -> bool:
    """Whether bytes are the faster way to multiply codes of an activation's levels with a weight."""
    multiplier = multiplier_of_levels(features)
    if multiplier is None:
        return False
    if bits > DIGIT_BITS:
        return weight_planes >= (1 if _is_wide(multiplier) else 2)
    return weight_planes >= _least_of_codes(features, multiplier, bits)


def gradients_pay(features: CpuFeatures, bits: int, weight_planes: int) -> bool:
    """Whether bytes are the faster way to multiply a gradient's codes with a weight."""
    multiplier = multiplier_of_levels(features)
    return multiplier is not None and (
        bits > DIGIT_BITS or weight_planes >= _least_of_codes(features, multiplier, bits)
    )


def signs_pay(features: CpuFeatures, weight_planes: int) -> bool:
    """Whether bytes are the faster way to multiply signs with a weight."""
    multiplier = multiplier_of_levels(features)
    return multiplier is not None and weight_planes >= (NEVER if multiplier.sums_halves else 4)


def multiplier_of_levels(features: CpuFeatures) -> ByteMultiplier | None:
    """The processor's products of codes with levels, which have signs; None where it has none. ARM's here have not."""
    return byte_multiplier(features) if features.is_x86 else None


def _is_wide(multiplier: ByteMultiplier) -> bool:
    """Whether an instruction adds up 64 products."""
    return multiplier.lanes == 16 and not multiplier.sums_halves


def _least_of_codes(features: CpuFeatures, multiplier: ByteMultiplier, bits: int) -> int:
    if not _is_wide(multiplier):
        return 4
    return 4 if bits == 1 and features.has_vpopcnt else 2
