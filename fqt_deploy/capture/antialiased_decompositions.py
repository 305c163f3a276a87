"""Antialiased interpolation: a product with a matrix of weights along each axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

Filter = Callable[[Tensor], Tensor]


def _triangle(x: Tensor) -> Tensor:
    return torch.clamp(1 - x.abs(), min=0.0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic of a = -0.5, which PyTorch takes where it is antialiased."""
    size, a = x.abs(), -0.5
    near = ((a + 2) * size - (a + 3)) * size * size + 1
    far = (((size - 5) * size + 8) * size - 4) * a
    return torch.where(size < 1, near, torch.where(size < 2, far, 0.0))


def _weights(source: int, target: int, corners: bool, factor: float | None, kernel: Filter, taps: int) -> Tensor:
    """The share of each of ``source`` elements in each of ``target`` ones: [target, source]."""
    if corners:
        scale = (source - 1) / (target - 1) if target > 1 else 0.0
    else:
        scale = 1 / factor if factor else source / target
    support, finer = taps / 2 * max(scale, 1.0), 1 / max(scale, 1.0)
    centre = (torch.arange(target, dtype=torch.float32)[:, None] + 0.5) * scale
    place = torch.arange(source, dtype=torch.float32)[None, :]
    first = torch.clamp(torch.trunc(centre - support + 0.5), min=0.0)
    last = torch.clamp(torch.trunc(centre + support + 0.5), max=float(source))
    share = torch.where((place >= first) & (place < last), kernel((place - centre + 0.5) * finer), 0.0)
    return share / share.sum(1, keepdim=True)


def _along_both(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``rows @ x @ columns.T`` of every image of ``x`` [N, C, H, W]."""
    n, c, h, w = x.shape
    wide = torch.mm(x.reshape(n * c * h, w), columns.t()).view(n, c, h, -1).permute(0, 1, 3, 2)
    high = torch.mm(wide.reshape(-1, h), rows.t()).view(n, c, columns.shape[0], rows.shape[0])
    return high.permute(0, 1, 3, 2)


def _both_directions(kernel: Filter, taps: int) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    def matrices(
        source: Sequence[int], target: Sequence[int], corners: bool, factors: tuple[float | None, float | None]
    ) -> list[Tensor]:
        pairs = zip(source[-2:], target[-2:], factors, strict=True)
        return [_weights(s, t, corners, f, kernel, taps) for s, t, f in pairs]

    def forward(
        x: Tensor, output_size: Sequence[int], align_corners: bool, scales_h: float | None = None,
        scales_w: float | None = None,
    ) -> Tensor:  # fmt: skip
        return _along_both(x, *matrices(x.shape, output_size, align_corners, (scales_h, scales_w)))

    def backward(
        g: Tensor, output_size: Sequence[int], input_size: Sequence[int], align_corners: bool,
        scales_h: float | None = None, scales_w: float | None = None,
    ) -> Tensor:  # fmt: skip
        rows, columns = matrices(input_size, output_size, align_corners, (scales_h, scales_w))
        return _along_both(g, rows.t(), columns.t())

    return forward, backward


_bilinear, _bilinear_backward = _both_directions(_triangle, 2)
_bicubic, _bicubic_backward = _both_directions(_cubic, 4)

ANTIALIASED: dict[Any, Callable[..., Any]] = {
    aten._upsample_bilinear2d_aa.default: _bilinear,
    aten._upsample_bilinear2d_aa_backward.default: _bilinear_backward,
    aten._upsample_bicubic2d_aa.default: _bicubic,
    aten._upsample_bicubic2d_aa_backward.default: _bicubic_backward,
}
"""By op."""
