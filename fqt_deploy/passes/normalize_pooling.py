"""Rewrites of ``normalize-layers`` for pooling, forward and backward.

Two-dimensional pooling with whole windows is one op. Any other is pooled along one axis after the other, the last one
first: partial, dilated and adaptive windows, other divisors, many positions, one axis or three::

    %y = aten.avg_pool2d(%x, [3, 3], [2, 2], [0, 0], True)                      # ceil_mode

    %a = fqt.window_mean(view(permute(%x), [N * H, W, C]), ...)
    %y = permute(view(fqt.window_mean(view(%a, [N, H, OW * C]), ...)))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.call import Call, call_of
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, replace_results, shape
from fqt_deploy.ops.lib.window_axis import WindowAxis
from fqt_deploy.passes.normalize_convolution import channels_first, channels_last

aten = torch.ops.aten
fqt = torch.ops.fqt

_MOST_POSITIONS = 16
"""Of a window whose maximum is one op, which is written out: of more, compilers would take minutes."""


def _axes(call: Call, image: list[int], windows: list[int]) -> list[WindowAxis]:
    """The windows of a pooling along each axis."""
    if "kernel_size" not in call:
        return [WindowAxis(i, o, i, o, 0, i + o - 1, 1) for i, o in zip(image, windows, strict=True)]
    kernel = _each(call.kernel_size, image)
    stride, padding = _each(call.stride or kernel, image), _each(call.padding, image)
    dilation = _each(call.dilation, image) if "dilation" in call else [1] * len(image)
    return [
        WindowAxis(extent, count, step, 1, pad, gap * (taps - 1) + 1, gap)
        for extent, count, taps, step, pad, gap in zip(image, windows, kernel, stride, padding, dilation, strict=True)
    ]


def _each(values: Sequence[int] | int, image: list[int]) -> list[int]:
    values = [values] if isinstance(values, int) else list(values)
    return values * (len(image) if len(values) == 1 else 1)


def _whole(axes: list[WindowAxis]) -> tuple[list[int], list[int], list[int]] | None:
    """Kernel, stride and padding, where the windows are whole ones of one size over two axes; None otherwise."""
    found = []
    for axis in axes:
        step, left = divmod(axis.step, axis.parts)
        size = axis.stop(0) - axis.first(0)
        last = axis.stop(axis.windows - 1)
        if left or axis.dilation != 1 or last > axis.extent + axis.offset:
            return None
        found.append((size, step, axis.offset))
    kernel, stride, padding = (list(part) for part in zip(*found, strict=True))
    return (kernel, stride, padding) if len(axes) == 2 else None


def _along(emit: Emitter, x: fx.Node, pool: Callable[[fx.Node, int], fx.Node], number: int) -> fx.Node:
    """Apply ``pool`` to spatial axis ``number`` of ``x`` [N, *spatial, C], as the middle one of three."""
    extents, at = shape(x), number + 1
    outside, inside = extents[:at], extents[at + 1 :]
    y = pool(emit(aten.view.default, x, [math.prod(outside), extents[at], math.prod(inside)]), number)
    return emit(aten.view.default, y, [*outside, shape(y)[1], *inside])


def _windows(axis: WindowAxis) -> list[int]:
    return [axis.step, axis.parts, axis.offset, axis.span]


def _divisors(call: Call, axes: list[WindowAxis]) -> tuple[list[int], int | None]:
    """How far padding counts along each axis, and what the sum is divided by instead."""
    counts = "count_include_pad" in call and call.count_include_pad
    override = call.divisor_override if "divisor_override" in call else None
    return [axis.offset if counts else 0 for axis in axes], override


def average_pool(graph: TrainingGraph, node: fx.Node) -> None:
    """Rewrite average pooling, adaptive or not."""
    call, emit = call_of(node), Emitter(graph, node)
    image, result = shape(call.self)[2:], shape(node)[2:]
    if "kernel_size" not in call and result == [1] * len(image):
        replace(graph, node, emit(aten.mean.dim, call.self, list(range(2, len(image) + 2)), True))
        return
    axes = _axes(call, image, result)
    counted, divisor = _divisors(call, axes)
    y, whole = channels_last(emit, call.self), _whole(axes)
    if whole is not None and divisor is None and counted == whole[2]:
        replace(graph, node, channels_first(emit, emit(fqt.avg_pool2d.default, y, *whole)))
        return

    def mean(x: fx.Node, i: int) -> fx.Node:
        return emit(fqt.window_mean.default, x, axes[i].windows, *_windows(axes[i]), counted[i], divisor is None)

    for number in reversed(range(len(axes))):
        y = _along(emit, y, mean, number)
    if divisor is not None:
        y = emit(aten.div.Tensor, y, divisor)
    replace(graph, node, channels_first(emit, y))


def average_pool_backward(graph: TrainingGraph, node: fx.Node) -> None:
    """Rewrite the gradient of average pooling."""
    call, emit = call_of(node), Emitter(graph, node)
    image = shape(call.self)[2:]
    axes = _axes(call, image, shape(call.grad_output)[2:])
    counted, divisor = _divisors(call, axes)
    g, whole = channels_last(emit, call.grad_output), _whole(axes)
    if whole is not None and divisor is None and counted == whole[2]:
        spread = emit(fqt.avg_pool2d_backward.default, g, image, *whole)
        replace(graph, node, channels_first(emit, spread))
        return
    if divisor is not None:
        g = emit(aten.div.Tensor, g, divisor)

    def spread_mean(x: fx.Node, i: int) -> fx.Node:
        return emit(fqt.window_mean_backward.default, x, image[i], *_windows(axes[i]), counted[i], divisor is None)

    for number in range(len(axes)):
        g = _along(emit, g, spread_mean, number)
    replace(graph, node, channels_first(emit, g))


def max_pool(graph: TrainingGraph, node: fx.Node) -> None:
    """Rewrite maximum pooling, adaptive or not; its positions are left for the gradient."""
    call, emit = call_of(node), Emitter(graph, node)
    axes = _axes(call, shape(call.self)[2:], [int(d) for d in node.meta["val"][0].shape[2:]])
    _require_gradient_alone(node)
    x, whole = channels_last(emit, call.self), _whole(axes)
    if whole is not None and math.prod(whole[0]) <= _MOST_POSITIONS:
        y = emit(fqt.max_pool2d.default, x, *whole)
        argmax = emit(fqt.max_pool2d_argmax.default, x, *whole)
        replace_results(graph, node, [channels_first(emit, y), argmax])
        return
    positions: list[fx.Node] = []

    def largest(x: fx.Node, i: int) -> fx.Node:
        windows = [axes[i].windows, *_windows(axes[i]), axes[i].dilation]
        positions.insert(0, emit(fqt.window_argmax.default, x, *windows))
        return emit(fqt.window_max.default, x, *windows)

    for number in reversed(range(len(axes))):
        x = _along(emit, x, largest, number)
    for backward in _gradients(node):
        backward.meta[_POSITIONS] = positions
    replace_results(graph, node, [channels_first(emit, x), positions[0]])


_POSITIONS = "pooling_positions"
"""Where the node of a gradient keeps the positions of the maxima along each axis, until it is rewritten itself."""


def max_pool_backward(graph: TrainingGraph, node: fx.Node) -> None:
    """Rewrite the gradient of maximum pooling."""
    call, emit = call_of(node), Emitter(graph, node)
    image = shape(call.self)[2:]
    axes = _axes(call, image, shape(call.grad_output)[2:])
    g, positions = channels_last(emit, call.grad_output), node.meta.get(_POSITIONS)
    if positions is None:
        whole = _whole(axes)
        assert whole is not None, node
        spread = emit(fqt.max_pool2d_backward.default, g, call.indices, image, *whole)
        replace(graph, node, channels_first(emit, spread))
        return

    def spread_max(x: fx.Node, i: int) -> fx.Node:
        windows = [*_windows(axes[i]), axes[i].dilation]
        return emit(fqt.window_max_backward.default, x, positions[i], image[i], *windows)

    for number in range(len(axes)):
        g = _along(emit, g, spread_max, number)
    replace(graph, node, channels_first(emit, g))


def _gradients(node: fx.Node) -> list[fx.Node]:
    """What reads the positions of a maximum pooling."""
    return [user for item in node.users if call_of(item).index == 1 for user in item.users]


def _require_gradient_alone(node: fx.Node) -> None:
    """FQT203 if anything but the gradient reads the positions: ours are no indices into the image."""
    if any(REWRITES.get(user.target) is not max_pool_backward for user in _gradients(node)):
        raise FqtError(
            "cannot lower pooling whose indices are used",
            code="FQT203",
            node=node,
            hint="leave return_indices=False; in the place of MaxUnpool use interpolate or ConvTranspose2d",
        )


REWRITES: dict[Any, Callable[[TrainingGraph, fx.Node], None]] = {
    aten.max_pool2d_with_indices.default: max_pool,
    aten.max_pool2d_with_indices_backward.default: max_pool_backward,
    aten.max_pool3d_with_indices.default: max_pool,
    aten.max_pool3d_with_indices_backward.default: max_pool_backward,
    aten.adaptive_max_pool2d.default: max_pool,
    aten.adaptive_max_pool2d_backward.default: max_pool_backward,
    aten.adaptive_max_pool3d.default: max_pool,
    aten.adaptive_max_pool3d_backward.default: max_pool_backward,
    aten.avg_pool2d.default: average_pool,
    aten.avg_pool2d_backward.default: average_pool_backward,
    aten.avg_pool3d.default: average_pool,
    aten.avg_pool3d_backward.default: average_pool_backward,
    aten._adaptive_avg_pool2d.default: average_pool,
    aten._adaptive_avg_pool2d_backward.default: average_pool_backward,
    aten._adaptive_avg_pool3d.default: average_pool,
    aten._adaptive_avg_pool3d_backward.default: average_pool_backward,
}
"""ATen pooling -> its rewrite."""
