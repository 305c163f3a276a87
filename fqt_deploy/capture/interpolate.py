"""``F.interpolate`` that repeats pixels, as a view and sums: the gradient that PyTorch has for it adds at places.

What adds at places is taken to mix the samples of a batch, so that none of them could be left out in backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

_REPEATING = ("nearest", "nearest-exact")
_LARGEST = 32
"""The largest factor: of some above, such as 41, PyTorch finds the first of the repeated pixels by a float that is
rounded down, and takes the pixel before it.
"""


def interpolate(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Images of another size.

    Args:
        input: [N, C, ...] float32; where each pixel is repeated a whole number of times along each axis, it is done
            here, anything else by PyTorch's own function.
        size: of the result's images, one number for all axes or one for each.
        scale_factor: in its place, how much larger they are.
        mode: ``nearest`` and the others.
        args: further arguments of PyTorch's function.
        kwargs: those by name.

    Returns:
        [N, C, ...] float32.
    """
    plain = mode in _REPEATING and not any(args) and not any(kwargs.values())  # others are errors, which PyTorch words
    factors = _whole_factors(list(input.shape[2:]), size, scale_factor) if plain else None
    return (
        F.interpolate(input, size, scale_factor, mode, *args, **kwargs)
        if factors is None
        else _repeated(input, factors)
    )


def _repeated(x: Tensor, factors: Sequence[int]) -> Tensor:
    """``x`` [N, C, ...] with every pixel so many times in a row along each axis of its images."""
    apart, filled, whole = ([*x.shape[:2]] for _ in range(3))
    for extent, factor in zip(x.shape[2:], factors, strict=True):
        apart += [extent, 1]
        filled += [extent, factor]
        whole += [extent * factor]
    return x.reshape(apart).expand(filled).reshape(whole)


def _whole_factors(
    extents: Sequence[int], size: int | Sequence[int] | None, scale: float | Sequence[float] | None
) -> list[int] | None:
    """How often pixels are repeated along each of the axes; None where it is not a whole number of times."""
    if (size is None) == (scale is None):
        return None  # an error, which PyTorch words
    scales = _of_each_axis(scale if size is None else size, len(extents))
    if len(scales) != len(extents):
        return None
    if size is not None:
        scales = [target / extent for target, extent in zip(scales, extents, strict=True)]
    whole = all(1 <= factor <= _LARGEST and factor == int(factor) for factor in scales)
    return [int(factor) for factor in scales] if whole else None


def _of_each_axis(given: float | Sequence[float] | None, axes: int) -> list[float]:
    if given is None:
        return []
    return list(given) if isinstance(given, Sequence) else [given] * axes
