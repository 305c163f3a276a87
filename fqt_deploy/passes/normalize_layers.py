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
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace_results, shape
from fqt_deploy.passes.normalize_pooling import REWRITES
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


_REWRITES: dict[Any, Callable[[TrainingGraph, fx.Node], None]] = {
    aten._native_batch_norm_legit_functional.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm_inference,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    **REWRITES,
}
