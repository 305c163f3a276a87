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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.call import Call, call_of
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, replace_results, shape
from fqt_deploy.passes.normalize_convolution import channels_first, channels_last
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


def _batch_norm(graph: TrainingGraph, node: fx.Node) -> None:
    call, emit = call_of(node), Emitter(graph, node)
    assert call.training, "evaluation-mode normalization is traced as the no_training op"
    result = emit(
        fqt.batch_norm.default, _to_last(emit, call.input), call.weight, call.bias, call.running_mean,
        call.running_var, call.momentum, call.eps,
    )  # fmt: skip
    y, *statistics = (emit.item(result, i) for i in range(5))
    replace_results(graph, node, [_to_first(emit, y), *statistics])


def _batch_norm_inference(graph: TrainingGraph, node: fx.Node) -> None:
    call, emit = call_of(node), Emitter(graph, node)
    inverse = emit(aten.rsqrt.default, emit(aten.add.Tensor, call.running_var, call.eps))
    scale = inverse if call.weight is None else emit(aten.mul.Tensor, call.weight, inverse)
    y = emit(aten.mul.Tensor, emit(aten.sub.Tensor, _to_last(emit, call.input), call.running_mean), scale)
    if call.bias is not None:
        y = emit(aten.add.Tensor, y, call.bias)
    # backward is handed its statistics, but reads the running ones
    replace_results(graph, node, [_to_first(emit, y), call.running_mean, inverse])


def _batch_norm_backward(graph: TrainingGraph, node: fx.Node) -> None:
    call, emit = call_of(node), Emitter(graph, node)
    g, x = _to_last(emit, call.grad_out), _to_last(emit, call.input)
    if not call.train:
        gx, *others = _constant_statistics_backward(emit, g, x, call)
    else:
        result = emit(fqt.batch_norm_backward.default, g, x, call.weight, call.save_mean, call.save_invstd, False)
        gx, *others = (emit.item(result, i) for i in range(3))
    replace_results(graph, node, [_to_first(emit, gx), *others])


def _constant_statistics_backward(emit: Emitter, g: fx.Node, x: fx.Node, call: Call) -> list[fx.Node]:
    """Gradients of ``(x - mean) * weight / deviation + bias`` with constant statistics: operand, weight, bias."""
    inverse = emit(aten.rsqrt.default, emit(aten.add.Tensor, call.running_var, call.eps))
    scale = inverse if call.weight is None else emit(aten.mul.Tensor, call.weight, inverse)
    normalized = emit(aten.mul.Tensor, emit(aten.sub.Tensor, x, call.running_mean), inverse)
    axes = list(range(len(shape(g)) - 1))
    gw = emit(aten.sum.dim_IntList, emit(aten.mul.Tensor, g, normalized), axes)
    return [emit(aten.mul.Tensor, g, scale), gw, emit(aten.sum.dim_IntList, g, axes)]


def _window(node: fx.Node) -> tuple[list[int], list[int], list[int]]:
    """Kernel, stride and padding of a pooling; FQT203 for what has no lowering."""
    call = call_of(node)

    def pair(values: list[int] | int) -> list[int]:
        values = [values] if isinstance(values, int) else list(values)
        return values * 2 if len(values) == 1 else values

    kernel, padding = pair(call.kernel_size), pair(call.padding)
    if "dilation" in call:
        _require(all(d == 1 for d in pair(call.dilation)), node, "dilation")
    if "count_include_pad" in call:
        _require(not call.ceil_mode, node, "ceil_mode")
        _require(bool(call.count_include_pad) or padding == [0, 0], node, "count_include_pad=False")
        _require(call.divisor_override is None, node, "a divisor override")
    return kernel, pair(call.stride) if call.stride else kernel, padding


def _require_argmax(node: fx.Node, kernel: list[int]) -> None:
    positions = kernel[0] * kernel[1]
    _require(positions <= 127, node, f"a maximum over {positions} positions", "at most 127; several poolings in a row")


def _require(condition: bool, node: fx.Node, what: str, hint: str | None = None) -> None:
    if not condition:
        hint = hint or "supported: dilation=1, ceil_mode=False, count_include_pad=True, no divisor_override"
        raise FqtError(f"cannot lower pooling with {what}", code="FQT203", node=node, hint=hint)


def _max_pool(graph: TrainingGraph, node: fx.Node) -> None:
    call, emit, window = call_of(node), Emitter(graph, node), _window(node)
    _require_argmax(node, window[0])
    x = channels_last(emit, call.self)
    y = emit(fqt.max_pool2d.default, x, *window)
    if call.ceil_mode:
        expected = [int(d) for d in node.meta["val"][0].shape[2:]]
        _require(shape(y)[1:3] == expected, node, "ceil_mode where it adds a partial window")
    argmax = emit(fqt.max_pool2d_argmax.default, x, *window)
    replace_results(graph, node, [channels_first(emit, y), argmax])


def _max_pool_backward(graph: TrainingGraph, node: fx.Node) -> None:
    call, emit = call_of(node), Emitter(graph, node)
    g = channels_last(emit, call.grad_output)
    x = emit(fqt.max_pool2d_backward.default, g, call.indices, shape(call.self)[2:], *_window(node))
    replace(graph, node, channels_first(emit, x))


def _avg_pool(graph: TrainingGraph, node: fx.Node) -> None:
    emit = Emitter(graph, node)
    y = emit(fqt.avg_pool2d.default, channels_last(emit, call_of(node).self), *_window(node))
    replace(graph, node, channels_first(emit, y))


def _avg_pool_backward(graph: TrainingGraph, node: fx.Node) -> None:
    call, emit = call_of(node), Emitter(graph, node)
    g = channels_last(emit, call.grad_output)
    spread = emit(fqt.avg_pool2d_backward.default, g, shape(call.self)[2:], *_window(node))
    replace(graph, node, channels_first(emit, spread))


def _adaptive_window(node: fx.Node, spatial: list[int], size: list[int]) -> tuple[list[int], list[int], list[int]]:
    """The windows of an adaptive pooling, where all are of one size."""
    fits = all(h % s == 0 for h, s in zip(spatial, size, strict=True))
    _require(fits, node, f"{spatial} to {size}", "an output size that divides the input size")
    kernel = [h // s for h, s in zip(spatial, size, strict=True)]
    return kernel, kernel, [0, 0]


def _adaptive_avg_pool(graph: TrainingGraph, node: fx.Node) -> None:
    call, emit = call_of(node), Emitter(graph, node)
    window = _adaptive_window(node, shape(call.self)[2:], list(call.output_size))
    if list(call.output_size) == [1, 1]:
        replace(graph, node, emit(aten.mean.dim, call.self, [2, 3], True))
        return
    y = emit(fqt.avg_pool2d.default, channels_last(emit, call.self), *window)
    replace(graph, node, channels_first(emit, y))


def _adaptive_avg_pool_backward(graph: TrainingGraph, node: fx.Node) -> None:
    call, emit = call_of(node), Emitter(graph, node)
    spatial = shape(call.self)[2:]
    window = _adaptive_window(node, spatial, shape(call.grad_output)[2:])
    g = channels_last(emit, call.grad_output)
    replace(graph, node, channels_first(emit, emit(fqt.avg_pool2d_backward.default, g, spatial, *window)))


def _adaptive_max_pool(graph: TrainingGraph, node: fx.Node) -> None:
    call, emit = call_of(node), Emitter(graph, node)
    window = _adaptive_window(node, shape(call.self)[2:], list(call.output_size))
    _require_argmax(node, window[0])
    x = channels_last(emit, call.self)
    y = channels_first(emit, emit(fqt.max_pool2d.default, x, *window))
    replace_results(graph, node, [y, emit(fqt.max_pool2d_argmax.default, x, *window)])


def _adaptive_max_pool_backward(graph: TrainingGraph, node: fx.Node) -> None:
    call, emit = call_of(node), Emitter(graph, node)
    spatial = shape(call.self)[2:]
    window = _adaptive_window(node, spatial, shape(call.grad_output)[2:])
    g = channels_last(emit, call.grad_output)
    x = emit(fqt.max_pool2d_backward.default, g, call.indices, spatial, *window)
    replace(graph, node, channels_first(emit, x))


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
