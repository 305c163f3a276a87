"""Index arithmetic of pooling windows, shared by the pooling ops."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx


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
