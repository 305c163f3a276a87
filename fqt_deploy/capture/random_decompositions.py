"""Distributions in numbers that are uniform from 0 to below 1, which the step's own generator draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _uniform_numbers(shape: Sequence[int]) -> Tensor:
    return aten.rand.default(list(shape), dtype=torch.float32)  # type: ignore[no-any-return]


def _normal_numbers(shape: Sequence[int]) -> Tensor:
    """Standard normal numbers (Box and Muller)."""
    radius = torch.sqrt(-2.0 * torch.log(1.0 - _uniform_numbers(shape)))
    return radius * torch.cos(2.0 * math.pi * _uniform_numbers(shape))


def _floats(dtype: torch.dtype | None) -> bool:
    return dtype in (None, torch.float32)


def _randn(size: Sequence[int], *, dtype: torch.dtype | None = None, **_: Any) -> Any:
    return _normal_numbers(size) if _floats(dtype) else NotImplemented


def _randn_like(x: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Any:
    return _normal_numbers(x.shape) if _floats(dtype or x.dtype) else NotImplemented


def _rand_like(x: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Any:
    return _uniform_numbers(x.shape) if _floats(dtype or x.dtype) else NotImplemented


def _normal(x: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Any:
    return _normal_numbers(x.shape) * std + mean if _floats(x.dtype) and generator is None else NotImplemented


def _uniform(x: Tensor, from_: float = 0.0, to: float = 1.0, *, generator: Any = None) -> Any:
    return (
        _uniform_numbers(x.shape) * (to - from_) + from_ if _floats(x.dtype) and generator is None else NotImplemented
    )


def _exponential(x: Tensor, lambd: float = 1.0, *, generator: Any = None) -> Any:
    if not _floats(x.dtype) or generator is not None:
        return NotImplemented
    return torch.log(1.0 - _uniform_numbers(x.shape)) * (-1.0 / lambd)


def _bernoulli(x: Tensor, *, generator: Any = None) -> Any:
    if not _floats(x.dtype) or generator is not None:
        return NotImplemented
    return (_uniform_numbers(x.shape) < x).to(x.dtype)


def _integers(low: int, high: int, size: Sequence[int], dtype: torch.dtype | None) -> Any:
    if high - low > 1 << 24:  # a uniform number has 24 bits
        return NotImplemented
    drawn = torch.floor(_uniform_numbers(size) * (high - low)).to(torch.int64) + low
    return drawn if dtype in (None, torch.int64) else drawn.to(dtype)


def _randint(high: int, size: Sequence[int], *, dtype: torch.dtype | None = None, **_: Any) -> Any:
    return _integers(0, high, size, dtype)


def _randint_low(low: int, high: int, size: Sequence[int], *, dtype: torch.dtype | None = None, **_: Any) -> Any:
    return _integers(low, high, size, dtype)


def _leaky_at_random(
    x: Tensor, noise: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> Any:
    """``F.rrelu``: a slope for each element that is not positive, and the slopes, 1 elsewhere; else their mean."""
    if not _floats(x.dtype) or generator is not None:
        return NotImplemented
    if not training:
        return torch.where(x > 0, x, x * ((lower + upper) / 2)), noise
    slopes = torch.where(x > 0, 1.0, _uniform_numbers(x.shape) * (upper - lower) + lower)
    return x * slopes, slopes


def _leaky_at_random_backward(
    gradient: Tensor, x: Tensor, noise: Tensor, lower: float, upper: float, training: bool, self_is_result: bool
) -> Tensor:
    return gradient * (noise if training else torch.where(x > 0, 1.0, (lower + upper) / 2))


RANDOM: dict[Any, Callable[..., Any]] = {
    aten.randn.default: _randn, aten.randn_like.default: _randn_like, aten.rand_like.default: _rand_like,
    aten.normal_functional.default: _normal, aten.uniform.default: _uniform,
    aten.exponential.default: _exponential, aten.bernoulli.default: _bernoulli,
    aten.randint.default: _randint, aten.randint.low: _randint_low,
    aten.rrelu_with_noise_functional.default: _leaky_at_random,
    aten.rrelu_with_noise_backward.default: _leaky_at_random_backward,
}  # fmt: skip
"""By op; a rule that gives ``NotImplemented`` leaves the call as it is."""
