"""Element-wise functions in simpler ones, exact to a few units in the last place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _asin(x: Tensor) -> Tensor:
    return 2 * torch.atan(x / (1 + torch.sqrt((1 - x) * (1 + x))))


def _acos(x: Tensor) -> Tensor:
    return 2 * torch.atan(torch.sqrt(1 - x) / torch.sqrt(1 + x))


def _signed(of_size: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An odd function, from what it is of positive numbers."""
    return lambda x: torch.sign(x) * of_size(x.abs())


def _acosh(x: Tensor) -> Tensor:
    above = x - 1
    return torch.log1p(above + torch.sqrt(above * (above + 2)))


def _atan2(y: Tensor, x: Tensor) -> Tensor:
    """The angle of the point (x, y); 0 for the origin."""
    half = torch.atan(y / x)
    left = torch.where(y >= 0, half + math.pi, half - math.pi)
    return torch.where(x > 0, half, torch.where(x < 0, left, torch.sign(y) * (math.pi / 2)))


def _copysign(x: Tensor, sign: Tensor) -> Tensor:
    negative = (sign < 0) | (1 / sign < 0)  # also -0
    return torch.where(negative, -x.abs(), x.abs())


def _rounded(x: Tensor, *, decimals: int) -> Tensor:
    scale = 10.0 ** abs(decimals)
    return torch.round(x * scale) / scale if decimals >= 0 else torch.round(x / scale) * scale


ELEMENTWISE: dict[Any, Callable[..., Any]] = {
    aten.asin.default: _asin, aten.acos.default: _acos, aten.acosh.default: _acosh,
    aten.asinh.default: _signed(lambda x: torch.log1p(x + x * x / (1 + torch.sqrt(x * x + 1)))),
    aten.atanh.default: _signed(lambda x: 0.5 * torch.log1p(2 * x / (1 - x))),
    aten.atan2.default: _atan2, aten.hypot.default: lambda x, y: torch.sqrt(x * x + y * y),
    aten.copysign.Tensor: _copysign, aten.round.decimals: _rounded,
    aten.exp2.default: lambda x: torch.exp(x * math.log(2)), aten.log2.default: lambda x: torch.log(x) / math.log(2),
    aten.log10.default: lambda x: torch.log(x) / math.log(10), aten.isinf.default: lambda x: x.abs() == math.inf,
    aten.sinh.default: lambda x: (torch.expm1(x) - torch.expm1(-x)) / 2,
    aten.cosh.default: lambda x: (torch.exp(x) + torch.exp(-x)) / 2,
}  # fmt: skip
"""By op."""
