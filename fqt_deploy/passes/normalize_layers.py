"""Spell batch normalization and pooling as channels-last ``fqt`` ops.

Before::

    %y, %m, %s, %rm, %rv = aten._native_batch_norm_legit_functional(%x, %w, %b, ...)     # x: [N, C, H, W]
    %p, %i = aten.max_pool2d_with_indices(%y, [2, 2])
    %gy = aten.max_pool2d_with_indices_backward(%gp, %y, [2, 2], ..., %i)

After::

    %y, %m, %s, %rm, %rv = fqt.batch_norm(permute(%x), %w, %b, ...)                      # x: [N, H, W, C]
    %p = fqt.max_pool2d(permute(%y), [2, 2], [2, 2], [0, 0]);  %a = fqt.max_pool2d_argmax(permute(%y), ...)
    %gy = fqt.max_pool2d_backward(permute(%gp), %a, [H, W], ...)
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, shape
from fqt_deploy.passes.normalize_products import channels_first, channels_last
from fqt_deploy.passes.pass_base import Pass, rewrite_each

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class NormalizeLayers(Pass):
    """Rewrite batch normalization and pooling, forward and backward."""

    name = "normalize-layers"

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite each such node; forward pooling leaves its positions for backward."""
        nodes = graph.calls(*_REWRITES)
        rewrite_each(graph, nodes, lambda node: _REWRITES[node.target](graph, node))
        return bool(nodes)


def _to_last(emit: Emitter, node: fx.Node) -> fx.Node:
    rank = len(shape(node))
    return node if rank == 2 else emit(aten.permute.default, node, [0, *range(2, rank), 1])


def _to_first(emit: Emitter, node: fx.Node) -> fx.Node:
    rank = len(shape(node))
    return node if rank == 2 else emit(aten.permute.default, node, [0, rank - 1, *range(1, rank - 1)])


def _scatter_items(graph: TrainingGraph, node: fx.Node, results: list[fx.Node | None]) -> None:
    """Replace ``node[i]`` by ``results[i]`` everywhere and remove ``node``."""
    for user in list(node.users):
        assert user.target is operator.getitem
        result = results[user.args[1]]  # type: ignore[index]
        if user.users:
            assert result is not None, user
            user.replace_all_uses_with(result)
        graph.graph.erase_node(user)
    graph.graph.erase_node(node)


def _batch_norm(graph: TrainingGraph, node: fx.Node) -> None:
    x, weight, bias, running_mean, running_var, training, momentum, eps = node.args
    assert training, "evaluation-mode normalization is traced as the no_training op"
    emit = Emitter(graph, node)
    result = emit(
        fqt.batch_norm.default,
        _to_last(emit, x),
        weight,
        bias,
        running_mean,
        running_var,
        momentum,
        eps,  # type: ignore[arg-type]
    )
    items: list[fx.Node | None] = [emit.item(result, i) for i in range(5)]
    items[0] = _to_first(emit, items[0])  # type: ignore[arg-type]
    _scatter_items(graph, node, items)


def _batch_norm_inference(graph: TrainingGraph, node: fx.Node) -> None:
    x, weight, bias, running_mean, running_var, _, eps = node.args
    emit = Emitter(graph, node)
    inverse = emit(aten.rsqrt.default, emit(aten.add.Tensor, running_var, eps))
    scale = inverse if weight is None else emit(aten.mul.Tensor, weight, inverse)
    y = emit(aten.mul.Tensor, emit(aten.sub.Tensor, _to_last(emit, x), running_mean), scale)  # type: ignore[arg-type]
    if bias is not None:
        y = emit(aten.add.Tensor, y, bias)
    # backward is handed its statistics, but reads the running ones
    _scatter_items(graph, node, [_to_first(emit, y), running_mean, inverse])  # type: ignore[list-item]


def _batch_norm_inference_backward(emit: Emitter, node: fx.Node) -> list[fx.Node | None]:
    """Gradients of ``(x - mean) * weight / deviation + bias`` with constant statistics: operand, weight, bias."""
    gradient, x, weight, mean, variance, _, _, _, eps, *_ = node.args
    g = _to_last(emit, gradient)  # type: ignore[arg-type]
    inverse = emit(aten.rsqrt.default, emit(aten.add.Tensor, variance, eps))
    scale = inverse if weight is None else emit(aten.mul.Tensor, weight, inverse)
    normalized = emit(aten.mul.Tensor, emit(aten.sub.Tensor, _to_last(emit, x), mean), inverse)  # type: ignore[arg-type]
    axes = list(range(len(shape(g)) - 1))
    gw = emit(aten.sum.dim_IntList, emit(aten.mul.Tensor, g, normalized), axes)
    return [_to_first(emit, emit(aten.mul.Tensor, g, scale)), gw, emit(aten.sum.dim_IntList, g, axes)]


def _batch_norm_backward(graph: TrainingGraph, node: fx.Node) -> None:
    gradient, x, weight, _, _, mean, inverse, training, *_ = node.args
    emit = Emitter(graph, node)
    if not training:
        _scatter_items(graph, node, _batch_norm_inference_backward(emit, node))
        return
    result = emit(
        fqt.batch_norm_backward.default,
        _to_last(emit, gradient),
        _to_last(emit, x),
        weight,
        mean,
        inverse,
        False,  # type: ignore[arg-type]
    )
    items: list[fx.Node | None] = [emit.item(result, i) for i in range(3)]
    items[0] = _to_first(emit, items[0])  # type: ignore[arg-type]
    _scatter_items(graph, node, items)


def _window(node: fx.Node, arguments: tuple[Any, ...]) -> tuple[list[int], list[int], list[int]]:
    """Kernel, stride and padding from a pooling op's arguments after the tensors; FQT203 for what has no lowering."""

    def pair(values: list[int] | int) -> list[int]:
        values = [values] if isinstance(values, int) else list(values)
        return values * 2 if len(values) == 1 else values

    kernel = pair(arguments[0])
    stride = pair(arguments[1]) if len(arguments) > 1 and arguments[1] else kernel
    padding = pair(arguments[2]) if len(arguments) > 2 else [0, 0]
    return kernel, stride, padding


def _require_argmax(node: fx.Node, kernel: list[int]) -> None:
    positions = kernel[0] * kernel[1]
    _require(positions <= 127, node, f"a maximum over {positions} positions", "at most 127; several poolings in a row")


def _require(condition: bool, node: fx.Node, what: str, hint: str | None = None) -> None:
    if not condition:
        hint = hint or "supported: dilation=1, ceil_mode=False, count_include_pad=True, no divisor_override"
        raise FqtError(f"cannot lower pooling with {what}", code="FQT203", node=node, hint=hint)


def _max_pool(graph: TrainingGraph, node: fx.Node) -> None:
    x, *arguments = node.args
    window = _window(node, tuple(arguments))
    dilation = arguments[3] if len(arguments) > 3 else [1, 1]
    ceil_mode = arguments[4] if len(arguments) > 4 else False
    _require(all(d == 1 for d in dilation), node, "dilation")  # type: ignore[union-attr]
    _require_argmax(node, window[0])
    emit = Emitter(graph, node)
    xl = channels_last(emit, x)  # type: ignore[arg-type]
    y = emit(fqt.max_pool2d.default, xl, *window)
    if ceil_mode:
        expected = [int(d) for d in node.meta["val"][0].shape[2:]]
        _require(shape(y)[1:3] == expected, node, "ceil_mode where it adds a partial window")
    argmax = emit(fqt.max_pool2d_argmax.default, xl, *window)
    _scatter_items(graph, node, [channels_first(emit, y), argmax])


def _max_pool_backward(graph: TrainingGraph, node: fx.Node) -> None:
    gradient, x, *arguments = node.args
    argmax = arguments[-1]
    emit = Emitter(graph, node)
    spatial = shape(x)[2:]  # type: ignore[arg-type]
    window = _window(node, tuple(arguments[:-1]))
    gl = channels_last(emit, gradient)  # type: ignore[arg-type]
    replace(graph, node, channels_first(emit, emit(fqt.max_pool2d_backward.default, gl, argmax, spatial, *window)))


def _check_average(node: fx.Node, options: tuple[Any, ...], padding: list[int]) -> None:
    ceil_mode, count_include_pad, divisor = options
    _require(not ceil_mode, node, "ceil_mode")
    _require(bool(count_include_pad) or padding == [0, 0], node, "count_include_pad=False")
    _require(divisor is None, node, "a divisor override")


def _avg_pool(graph: TrainingGraph, node: fx.Node) -> None:
    x, *arguments = node.args
    window = _window(node, tuple(arguments))
    defaults = (False, True, None)
    _check_average(node, (*arguments[3:], *defaults[len(arguments[3:]) :]), window[2])
    emit = Emitter(graph, node)
    y = emit(fqt.avg_pool2d.default, channels_last(emit, x), *window)  # type: ignore[arg-type]
    replace(graph, node, channels_first(emit, y))


def _avg_pool_backward(graph: TrainingGraph, node: fx.Node) -> None:
    gradient, x, *arguments = node.args
    window = _window(node, tuple(arguments))
    _check_average(node, tuple(arguments[3:]), window[2])
    emit = Emitter(graph, node)
    gl = channels_last(emit, gradient)  # type: ignore[arg-type]
    spread = emit(fqt.avg_pool2d_backward.default, gl, shape(x)[2:], *window)  # type: ignore[arg-type]
    replace(graph, node, channels_first(emit, spread))


def _adaptive_window(node: fx.Node, spatial: list[int], size: list[int]) -> tuple[list[int], list[int], list[int]]:
    """The windows of an adaptive pooling, where all are of one size."""
    fits = all(h % s == 0 for h, s in zip(spatial, size, strict=True))
    _require(fits, node, f"{spatial} to {size}", "an output size that divides the input size")
    kernel = [h // s for h, s in zip(spatial, size, strict=True)]
    return kernel, kernel, [0, 0]


def _adaptive_avg_pool(graph: TrainingGraph, node: fx.Node) -> None:
    x, size = node.args
    emit = Emitter(graph, node)
    window = _adaptive_window(node, shape(x)[2:], list(size))  # type: ignore[arg-type]
    if list(size) == [1, 1]:  # type: ignore[arg-type]
        replace(graph, node, emit(aten.mean.dim, x, [2, 3], True))
        return
    y = emit(fqt.avg_pool2d.default, channels_last(emit, x), *window)  # type: ignore[arg-type]
    replace(graph, node, channels_first(emit, y))


def _adaptive_avg_pool_backward(graph: TrainingGraph, node: fx.Node) -> None:
    gradient, x = node.args
    emit = Emitter(graph, node)
    spatial = shape(x)[2:]  # type: ignore[arg-type]
    window = _adaptive_window(node, spatial, shape(gradient)[2:])  # type: ignore[arg-type]
    gl = channels_last(emit, gradient)  # type: ignore[arg-type]
    replace(graph, node, channels_first(emit, emit(fqt.avg_pool2d_backward.default, gl, spatial, *window)))


def _adaptive_max_pool(graph: TrainingGraph, node: fx.Node) -> None:
    x, size = node.args
    emit = Emitter(graph, node)
    window = _adaptive_window(node, shape(x)[2:], list(size))  # type: ignore[arg-type]
    _require_argmax(node, window[0])
    xl = channels_last(emit, x)  # type: ignore[arg-type]
    y = channels_first(emit, emit(fqt.max_pool2d.default, xl, *window))
    _scatter_items(graph, node, [y, emit(fqt.max_pool2d_argmax.default, xl, *window)])


def _adaptive_max_pool_backward(graph: TrainingGraph, node: fx.Node) -> None:
    gradient, x, argmax = node.args
    emit = Emitter(graph, node)
    spatial = shape(x)[2:]  # type: ignore[arg-type]
    window = _adaptive_window(node, spatial, shape(gradient)[2:])  # type: ignore[arg-type]
    gl = channels_last(emit, gradient)  # type: ignore[arg-type]
    replace(graph, node, channels_first(emit, emit(fqt.max_pool2d_backward.default, gl, argmax, spatial, *window)))


_REWRITES: dict[Any, Callable[[TrainingGraph, fx.Node], None]] = {
    aten._native_batch_norm_legit_functional.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm_inference,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
    aten.avg_pool2d.default: _avg_pool,
    aten.avg_pool2d_backward.default: _avg_pool_backward,
    aten._adaptive_avg_pool2d.default: _adaptive_avg_pool,
    aten._adaptive_avg_pool2d_backward.default: _adaptive_avg_pool_backward,
    aten.adaptive_max_pool2d.default: _adaptive_max_pool,
    aten.adaptive_max_pool2d_backward.default: _adaptive_max_pool_backward,
}
