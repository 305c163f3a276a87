"""``F.grid_sample`` of images as lookups and sums: the gradient that PyTorch has for it is one kernel."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_Fold = Callable[[Tensor, int], Tensor]
"""What brings coordinates along an axis of so many pixels back into the image, or leaves them."""


def grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    """The pixels of an image at places between them.

    Args:
        input: [N, C, H, W] float32; of what has another number of axes PyTorch's own function is traced.
        grid: [N, h, w, 2] float32, places as (x, y) from -1 to 1.
        mode: ``bilinear``, ``nearest`` or ``bicubic``.
        padding_mode: what is outside: ``zeros``, the ``border`` or a ``reflection``.
        align_corners: -1 and 1 are the middles of the outermost pixels, not their edges.

    Returns:
        [N, C, h, w] float32.
    """
    if input.dim() != 4 or grid.dim() != 4 or mode not in _TAPS or padding_mode not in _FOLDS:
        return F.grid_sample(input, grid, mode, padding_mode, align_corners)  # which says why not
    aligned = bool(align_corners)
    fold = _FOLDS[padding_mode](aligned)
    axes = [
        _TAPS[mode](_pixels(grid[..., axis], size, aligned), size, fold)
        for axis, size in ((0, input.shape[3]), (1, input.shape[2]))
    ]
    flat = input.flatten(2)
    total: Tensor | None = None
    for (x, x_weight), (y, y_weight) in itertools.product(*axes):
        value = _picked(flat, x, y, input.shape[2], input.shape[3]) * (x_weight * y_weight)[:, None]
        total = value if total is None else total + value
    assert total is not None
    return total


def _picked(flat: Tensor, x: Tensor, y: Tensor, height: int, width: int) -> Tensor:
    """The pixels [N, C, h, w] at whole places [N, h, w] of images [N, C, H * W]; outside there are zeros."""
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    place = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long()
    index = place.flatten(1)[:, None].expand(-1, flat.shape[1], -1)
    pixels = flat.gather(2, index).view(*flat.shape[:2], *place.shape[1:])
    return torch.where(inside[:, None], pixels, 0.0)


def _pixels(place: Tensor, size: int, aligned: bool) -> Tensor:
    """Places from -1 to 1 in pixels, of which the first is 0."""
    return (place + 1) / 2 * (size - 1) if aligned else ((place + 1) * size - 1) / 2


def _within(x: Tensor, size: int) -> Tensor:
    """The nearest place in the image; without a gradient where that is the border, as in PyTorch."""
    return torch.where((x > 0) & (x < size - 1), x, x.detach().clamp(0, size - 1))


def _reflected(x: Tensor, low: float, high: float) -> Tensor:
    """``x`` mirrored at ``low`` and ``high`` until it is between them."""
    if low == high:
        return torch.zeros_like(x)
    distance = (x - low).abs()
    turns = torch.floor(distance / (high - low)).detach()
    rest = distance - turns * (high - low)
    return torch.where(torch.remainder(turns, 2) == 0, low + rest, high - rest)


def _reflection(aligned: bool) -> _Fold:
    edge = 0.0 if aligned else 0.5
    return lambda x, size: _within(_reflected(x, -edge, size - 1 + edge), size)


_FOLDS: dict[str, Callable[[bool], _Fold]] = {
    "zeros": lambda _: lambda x, size: x,
    "border": lambda _: _within,
    "reflection": _reflection,
}

_Taps = list[tuple[Tensor, Tensor]]
"""Whole places along an axis, [N, h, w], and the weights of their pixels."""


def _nearest(x: Tensor, size: int, fold: _Fold) -> _Taps:
    place = torch.round(fold(x, size).detach())
    return [(place, torch.ones_like(place))]


def _bilinear(x: Tensor, size: int, fold: _Fold) -> _Taps:
    x = fold(x, size)
    first = torch.floor(x).detach()
    return [(first, first + 1 - x), (first + 1, x - first)]


def _bicubic(x: Tensor, size: int, fold: _Fold) -> _Taps:
    first = torch.floor(x).detach()
    t = x - first
    weights = (_outer(t + 1), _inner(t), _inner(1 - t), _outer(2 - t))
    return [(torch.floor(fold(first + (at - 1), size).detach()), weight) for at, weight in enumerate(weights)]


def _inner(t: Tensor) -> Tensor:
    """Keys' kernel with a = -0.75, at a distance of at most 1."""
    return (1.25 * t - 2.25) * t * t + 1


def _outer(t: Tensor) -> Tensor:
    """The same, from 1 to 2."""
    return ((-0.75 * t + 3.75) * t - 6) * t + 3


_TAPS: dict[str, Callable[[Tensor, int, _Fold], _Taps]] = {
    "bilinear": _bilinear,
    "nearest": _nearest,
    "bicubic": _bicubic,
}
