"""The stochastically rounded code of a value, in fixed point: shared by the four quantizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.counter_random import element_hash, element_hash_compute, uint32
from fqt_deploy.ops.lib.late_modules import te, tirx

FRACTION = 20
"""Number of fractional bits that decide the rounding; codes of 8 bits then still fit an int32."""


def rounded(value: Tensor, zero: Tensor, reciprocal: Tensor, index: Tensor, key: Tensor, bits: int) -> Tensor:
    """The code ``floor((value - zero) * reciprocal + u)`` clamped to [0, 2^bits - 1], ``u`` uniform on a grid of 2^-20.

    All operands broadcast; the result is uint8.
    """
    fixed = ((torch.maximum(value, zero) - zero) * (reciprocal * 2.0**FRACTION)).to(torch.int32).long()
    code = (fixed + (element_hash(index, key) >> (32 - FRACTION))) >> FRACTION
    return code.clamp(max=2**bits - 1).to(torch.uint8)


def rounded_compute(value: Any, zero: Any, reciprocal: Any, index: Any, key: te.Tensor, bits: int) -> Any:
    """The code ``rounded`` of scalar expressions, as int32."""
    scaled = (tirx.max(value, zero) - zero) * (reciprocal * tirx.const(2.0**FRACTION, "float32"))
    noise = (element_hash_compute(index, key) >> uint32(32 - FRACTION)).astype("int32")
    return tirx.min((scaled.astype("int32") + noise) >> FRACTION, 2**bits - 1)
