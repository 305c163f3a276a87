"""Put the rows of binarized layers in the order of samples, so that the quantizers' groups are samples.

Before, a layer of a recurrent or attention block in which time comes first (T steps of N samples)::

    %y  = fqt.linear(%x, %w)                                     # [T * N, C]: rows of all samples, step by step
    %gw = fqt.linear_weight_grad(%x, %gy)

After::

    %xs = view(permute(view(%x, [T, N, C]), [1, 0, 2]), [N * T, C])
    %y  = view(permute(view(fqt.linear(%xs, %w), [N, T, O]), [1, 0, 2]), [T * N, O])
    %gw = fqt.linear_weight_grad(%xs, %gys)                      # the order of both rows is the same
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.call import call_of, source_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, shape
from fqt_deploy.ops.sample_axes import sample_axes
from fqt_deploy.ops.traits import LEADING
from fqt_deploy.passes.annotate_layers import call_key, products_of
from fqt_deploy.passes.normalize_views import NormalizeViews
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten

_MARKS = ("record", "direction")


@dataclass(frozen=True)
class OrderRows(Pass):
    """Permute the rows of products that have groups of all samples on their leading axis."""

    name = "order-rows"

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite all three directions; where a layer's rows lie is known from its forward product."""
        axes = sample_axes(graph)
        forward = {call_key(n): source_of(n) for n in reversed(products_of(graph, "forward"))}
        changed = False
        for direction in ("forward", "input_grad", "weight_grad"):
            for node in products_of(graph, direction):
                rows = source_of(node)
                if direction != "forward":
                    rows = forward.get(call_key(node), rows)
                where = axes.get(rows) or axes.get(_gradient(node), LEADING)
                if where.outer > 1:
                    _reorder(graph, node, where.outer)
                    changed = True
        if changed:
            NormalizeViews().run(graph)
        return changed


def _gradient(node: fx.Node) -> fx.Node:
    """The gradient that a backward product reads; what a forward product reads."""
    call = call_of(node)
    return call.g if "g" in call else source_of(node)


def _reorder(graph: TrainingGraph, node: fx.Node, outer: int) -> None:
    """Make ``node`` a product of rows in the order of samples; its result has the order from before."""
    emit, call = Emitter(graph, node), call_of(node)
    names = ("x", "g") if node.meta["direction"] == "weight_grad" else ("x",) if "x" in call else ("g",)
    samples = graph.batch
    operands = {name: _exchanged(emit, getattr(call, name), outer, samples) for name in names}
    product = emit.again(node, **operands)
    product.meta.update({key: node.meta[key] for key in _MARKS})
    result = product if node.meta["direction"] == "weight_grad" else _exchanged(emit, product, samples, outer)
    replace(graph, node, result)


def _exchanged(emit: Emitter, rows: fx.Node, first: int, second: int) -> fx.Node:
    """``rows``, whose leading axis is [first, second, ...], with these two exchanged."""
    extents = shape(rows)
    split = [first, second, extents[0] // (first * second), *extents[1:]]
    order = [1, 0, *range(2, len(split))]
    return emit(aten.view.default, emit(aten.permute.default, emit(aten.view.default, rows, split), order), extents)
