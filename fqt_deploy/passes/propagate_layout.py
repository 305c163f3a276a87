"""Let the channels-last layout flow through element-wise ops and reductions, so that permutations meet and cancel.

Before::

    %a = permute(%y, [0, 3, 1, 2]);  %r = aten.relu(%a);  %b = permute(%r, [0, 2, 3, 1])

After::

    %r = aten.relu(%y)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.call import call_of, source_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, shape
from fqt_deploy.ops.aten.reductions import reduced_axes
from fqt_deploy.ops.op import op_of
from fqt_deploy.ops.traits import Layout
from fqt_deploy.passes.normalize_views import NormalizeViews
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten

TO_CHANNELS_FIRST = [0, 3, 1, 2]
"""What follows every channels-last product: the one permutation that other operands are permuted for."""


@dataclass(frozen=True)
class PropagateLayout(Pass):
    """Sink permutations below element-wise ops and reductions, then cancel them."""

    name = "propagate-layout"

    def run(self, graph: TrainingGraph) -> bool:
        """Sweep forward until no permutation moves."""
        changed = False
        while _sweep(graph):
            NormalizeViews().run(graph)
            graph.graph.eliminate_dead_code()
            changed = True
        return changed


def _sweep(graph: TrainingGraph) -> bool:
    moved = False
    for node in list(graph.graph.nodes):
        op = op_of(node)
        if op is not None and (sink := _RULES.get(op.traits.layout)) is not None:
            moved |= sink(graph, node)
    return moved


def _order(node: Any, rank: int) -> list[int] | None:
    """The order of a permutation of a ``rank``-dimensional tensor, else None."""
    if isinstance(node, fx.Node) and node.target is aten.permute.default and len(shape(node)) == rank:
        return [int(d) % rank for d in call_of(node).dims]
    return None


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _sink_below_pointwise(graph: TrainingGraph, node: fx.Node) -> bool:
    rank = len(shape(node))
    operands = node.all_input_nodes
    order = next((o for a in operands if (o := _order(a, rank)) is not None and shape(a) == shape(node)), None)
    if order is None or any(len(shape(a)) not in (0, rank) for a in operands):
        return False
    if order != TO_CHANNELS_FIRST and any(_order(a, rank) != order for a in operands if shape(a)):
        return False  # would only move the permutation to the other operand, and back
    emit = Emitter(graph, node)
    inverse = _inverse(order)

    def unpermuted(operand: fx.Node) -> fx.Node:
        if len(shape(operand)) == 0:
            return operand
        if _order(operand, rank) == order:
            return source_of(operand)
        return emit(aten.permute.default, operand, inverse)

    args, kwargs = fx.map_arg((node.args, node.kwargs), unpermuted)
    inner = emit(node.target, *args, **kwargs)
    replace(graph, node, emit(aten.permute.default, inner, order))
    return True


def _sink_below_reduction(graph: TrainingGraph, node: fx.Node) -> bool:
    source = source_of(node)
    rank = len(shape(source))
    order = _order(source, rank)
    if order is None:
        return False
    if "dim" not in call_of(node) and "dims" not in call_of(node):  # all axes, in whatever order
        _, *others = node.args
        replace(graph, node, Emitter(graph, node)(node.target, source_of(source), *others, **node.kwargs))
        return True
    axes = [order[a] for a in reduced_axes(call_of(node))]
    keepdim = len(shape(node)) == rank
    kept = [order[a] for a in range(rank) if order[a] not in axes]
    if not keepdim and kept != sorted(kept):
        return False
    emit = Emitter(graph, node)
    inner = emit(node.target, source_of(source), sorted(axes), *([True] if keepdim else []), **node.kwargs)
    replace(graph, node, emit(aten.permute.default, inner, order) if keepdim else inner)
    return True


_RULES = {Layout.ELEMENTWISE: _sink_below_pointwise, Layout.REDUCTION: _sink_below_reduction}
"""What moves a permutation below an op, by what the op's definition says of its layout."""
