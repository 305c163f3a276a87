"""Insert Activation Gradient Pruning (AGP): keep 1/b of the groups, at b bits each, and drop the rest.

Before::

    %grid  = fqt.quantization_grid(%lo, %hi, b, grid)                     # one group per sample (or channel)
    %codes = fqt.quantize_samples(%g, %a, None, ...)
    %gx    = fqt.conv2d_input_grad(fqt.dequantize(%codes, %scale, %zero, 0), %wb, ...)

After::

    %index, %slot, %weight = fqt.select_sampled(score, key, K)            # or select_topk
    %grid  = fqt.quantization_grid(gather_rows(%lo, %index), gather_rows(%hi, %index), b, grid)
    %codes = fqt.quantize_samples(%g, %a, %index, ...)                    # K groups
    %gk    = fqt.conv2d_input_grad(fqt.dequantize(%codes, %scale * %weight, %zero * %weight, 0), %wb, ...)
    %gx    = fqt.scatter_rows(%gk, %slot)                                 # pruned groups are zero

The score is the group's Euclidean norm (sampled) or its largest magnitude (top-k).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from fqt_deploy.core.call import call_of, source_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, behind_views, shape
from fqt_deploy.passes.insert_scq import random_key
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class InsertAGP(Pass):
    """Prune the groups of every quantized gradient, unbiased (``sampled``) or greedily (``topk``).

    Attributes:
        selection: ``sampled`` or ``topk``.
    """

    selection: Literal["sampled", "topk"] = "sampled"

    name = "insert-agp"
    exact = False

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite every quantizer that still keeps all groups, unless samples were selected for all of backward."""
        if graph.selection not in (None, "tokens"):
            return False
        nodes = [n for n in graph.calls(fqt.dequantize.default) if not _keeps_tokens(n)]
        graph.selection = graph.selection or self.selection
        for node in nodes:
            self._prune(graph, node)
        return bool(nodes)

    def _prune(self, graph: TrainingGraph, dequantize: fx.Node) -> None:
        codes, axis = call_of(dequantize).codes, call_of(dequantize).axis
        groups = shape(codes)[axis]
        keep = max(1, round(groups / call_of(codes).bits))
        if keep >= groups:
            return
        (view,) = dequantize.users
        (product,) = view.users
        emit, quantizer = Emitter(graph, product), call_of(codes)
        side = "samples" if axis == 0 else "channels"
        g, scale = quantizer.g, quantizer.alpha if axis == 0 else None
        old_grid = source_of(quantizer.zero)
        bounds = call_of(old_grid).low, call_of(old_grid).high
        index, slot, weight = self._select(graph, emit, product.meta["record"].index, side, (g, scale), bounds, keep)

        low, high = (emit(fqt.gather_rows.default, bound, index) for bound in bounds)
        grid = emit.again(old_grid, low=low, high=high)
        zero, reciprocal, step = (emit.item(grid, i) for i in range(3))
        new_codes = emit.again(codes, index=index, zero=zero, reciprocal=reciprocal)
        weighted = [emit(aten.mul.Tensor, value, weight) for value in (step, zero)]
        values = emit(fqt.dequantize.default, new_codes, *weighted, axis)
        _replace_product(emit, product, view, values, slot, axis=axis)

    def _select(
        self,
        graph: TrainingGraph,
        emit: Emitter,
        layer: int,
        side: str,
        gradient: tuple[Any, Any],
        bounds: tuple[fx.Node, fx.Node],
        keep: int,
    ) -> tuple[fx.Node, ...]:
        """Nodes of the kept indices, each group's slot among them, and the weights of the kept groups."""
        if self.selection == "topk":
            score = emit(aten.maximum.default, *[emit(aten.abs.default, bound) for bound in bounds])
            result = emit(fqt.select_topk.default, score, keep)
        else:
            g, scale = gradient
            squares = _sum_of_squares(emit, g)
            if scale is not None:
                squares = emit(aten.mul.Tensor, squares, emit(aten.mul.Tensor, scale, scale))
            total = emit(aten.sum.dim_IntList, squares, [1] if side == "samples" else [0])
            key = random_key(emit, graph, layer, f"select_{side}")
            result = emit(fqt.select_sampled.default, emit(aten.sqrt.default, total), key, keep)
        return tuple(emit.item(result, i) for i in range(3))


def _keeps_tokens(dequantize: fx.Node) -> bool:
    """Whether the gradient consists of rows that ``select-tokens`` has kept."""
    return "kept" in behind_views(call_of(call_of(dequantize).codes).g).meta


def _sum_of_squares(emit: Emitter, g: fx.Node) -> fx.Node:
    """The third output of the statistics that SCQ already takes of ``g``."""
    statistics = next(user for user in g.users if user.target is fqt.position_statistics.default)
    found = next((user for user in statistics.users if call_of(user).index == 2), None)
    return found or emit.item(statistics, 2)


def _replace_product(emit: Emitter, product: fx.Node, view: fx.Node, values: fx.Node, slot: fx.Node, axis: int) -> None:
    """Run ``product`` on the kept groups and scatter its result back to all of them."""
    gradient_shape, result_shape = shape(view), shape(product)
    samples, positions, channels = shape(values)
    if axis == 0:
        compact = [samples, *gradient_shape[1:]] if len(gradient_shape) == 4 else [samples * positions, channels]
    else:
        compact = [*gradient_shape[:-1], channels]
    operand = emit(aten.view.default, values, compact)
    pruned = emit.again(product, g=operand)
    pruned.meta.update({k: product.meta[k] for k in ("record", "direction")})
    if axis == 0 and len(gradient_shape) == 2:
        grouped = emit(aten.view.default, pruned, [samples, positions, shape(pruned)[-1]])
        scattered = emit(fqt.scatter_rows.default, grouped, slot)
        result = emit(aten.view.default, scattered, result_shape)
    else:
        result = scattered = emit(fqt.scatter_rows.default, pruned, slot)
    scattered.meta["scatters"] = "samples" if axis == 0 else "channels"
    product.replace_all_uses_with(result)
    product.graph.erase_node(product)
