"""Index arithmetic of pooling windows, shared by the pooling ops."""

from __future__ import annotations

import math
from typing import Any

from fqt_deploy.ops.lib.late_modules import te, tirx


def pooled_extent(extent: int, kernel: int, stride: int, padding: int) -> int:
    """Number of windows along one axis (no ceiling mode)."""
    return (int(extent) + 2 * padding - kernel) // stride + 1


def window_taps(
    x: te.Tensor, index: tuple[Any, ...], kernel: list[int], stride: list[int], padding: list[int], outside: float
) -> list[Any]:
    """The elements of ``x`` [N, H, W, C] in the window of output ``index``; ``outside`` where it leaves the image."""
    n, oh, ow, c = index
    height, width = int(x.shape[1]), int(x.shape[2])
    taps = []
    for kh in range(kernel[0]):
        for kw in range(kernel[1]):
            h, w = oh * stride[0] + (kh - padding[0]), ow * stride[1] + (kw - padding[1])
            if padding == [0, 0]:
                taps.append(x[n, h, w, c])
                continue
            inside = tirx.all(h >= 0, h < height, w >= 0, w < width)
            taps.append(tirx.if_then_else(inside, x[n, h, w, c], tirx.const(outside, x.dtype)))
    return taps


def nearest_taps(
    x: te.Tensor, index: tuple[Any, ...], kernel: list[int], stride: list[int], padding: list[int]
) -> list[tuple[Any, Any]]:
    """The elements of the window of output ``index``; where it leaves the image, the nearest one inside once more.

    A maximum is the same as with minus infinity outside, and no element is read on a condition: padding is at most half
    of the window, so that the nearest one is in the window, and row by row none comes before its turn.

    Returns:
        One ``(element, position)`` per tap, the position int8, ``row * kernel[1] + column`` inside the window.
    """
    n, oh, ow, c = index
    steps = zip((oh, ow), x.shape[1:3], kernel, stride, padding, strict=True)
    rows, columns = (_nearest(o, int(extent), *window) for o, extent, *window in steps)
    return [(x[n, h, w, c], (row * kernel[1] + column).astype("int8")) for h, row in rows for w, column in columns]


def _nearest(window: Any, extent: int, kernel: int, stride: int, padding: int) -> list[tuple[Any, Any]]:
    """Where each tap along one axis reads, and the position of that in the window."""
    last = (pooled_extent(extent, kernel, stride, padding) - 1) * stride
    taps = []
    for tap in range(kernel):
        at = first = window * stride + (tap - padding)
        if tap < padding:
            at = tirx.max(at, 0)
        if last + tap - padding >= extent:
            at = tirx.min(at, extent - 1)
        taps.append((at, tirx.const(tap, "int32") if at is first else at - (window * stride - padding)))
    return taps


def covering_count(kernel: list[int], stride: list[int]) -> int:
    """The largest number of windows that cover one input position."""
    return math.prod(-(-size // step) for size, step in zip(kernel, stride, strict=True))


def covering_windows(
    h: Any, w: Any, windows: tuple[int, int], kernel: list[int], stride: list[int], padding: list[int]
) -> list[tuple[Any, Any, Any, Any]]:
    """All windows that cover input position ``(h, w)``.

    Returns:
        One ``(condition, oh, ow, tap)`` per candidate; where the condition is false the candidate does not exist.
    """
    found = []
    for dh in range(-(-kernel[0] // stride[0])):
        for dw in range(-(-kernel[1] // stride[1])):
            oh = tirx.floordiv(h + padding[0], stride[0]) - dh
            ow = tirx.floordiv(w + padding[1], stride[1]) - dw
            kh, kw = h + padding[0] - oh * stride[0], w + padding[1] - ow * stride[1]
            limits = [oh < windows[0], ow < windows[1]]
            if dh or padding[0]:
                limits.append(oh >= 0)
            if dw or padding[1]:
                limits.append(ow >= 0)
            if kernel[0] % stride[0] or kernel[0] < stride[0]:
                limits.append(kh < kernel[0])
            if kernel[1] % stride[1] or kernel[1] < stride[1]:
                limits.append(kw < kernel[1])
            found.append((tirx.all(*limits), oh, ow, kh * kernel[1] + kw))
    return found
