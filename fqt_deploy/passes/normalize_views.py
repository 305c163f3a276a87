"""Reduce every alias and reshape to ``view``, ``permute`` and ``expand``, and cancel what cancels.

Before::

    %a = aten.detach(%x); %b = aten.unsqueeze(%a, 1); %t = aten.permute(%w, [1, 0]); %tt = aten.permute(%t, [1, 0])

After::

    %b = aten.view(%x, [8, 1, 64])            (and %tt is %w)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.call import call_of, source_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, behind_views, replace, shape, value
from fqt_deploy.ops.aten.spellings import ALIASES, RESHAPES
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
prims = torch.ops.prims


@dataclass(frozen=True)
class NormalizeViews(Pass):
    """Remove aliases, spell reshapes as ``view``, broadcasts as ``expand``, and cancel inverse permutations."""

    name = "normalize-views"

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite until nothing changes in one sweep over the nodes."""
        changed = False
        for node in list(graph.graph.nodes):
            if node.op == "call_function":
                changed |= _rewrite(graph, node)
        return changed


def _rewrite(graph: TrainingGraph, node: fx.Node) -> bool:
    replacement = _replacement(graph, node)
    if replacement is None or replacement is node:
        return False
    replace(graph, node, replacement)
    return True


def _replacement(graph: TrainingGraph, node: fx.Node) -> fx.Node | None:
    emit = Emitter(graph, node)
    if node.target in ALIASES or _is_no_op_copy(node):
        return source_of(node)
    if node.target in RESHAPES:
        source = behind_views(source_of(node))
        if shape(source) == shape(node):
            return source
        if node.target is aten.view.default and source is source_of(node):
            return None
        return emit(aten.view.default, source, shape(node))
    if node.target is aten.permute.default:
        return _permutation(emit, node)
    if node.target is prims.broadcast_in_dim.default:
        source, call = source_of(node), call_of(node)
        target, dims = list(call.shape), list(call.broadcast_dimensions)
        aligned = [shape(source)[dims.index(d)] if d in dims else 1 for d in range(len(target))]
        viewed = source if aligned == shape(source) else emit(aten.view.default, source, aligned)
        return viewed if aligned == target else emit(aten.expand.default, viewed, target)
    if node.target is aten.expand.default and shape(source_of(node)) == shape(node):
        return source_of(node)
    return None


def _order(permutation: fx.Node) -> list[int]:
    return [int(d) % len(shape(permutation)) for d in call_of(permutation).dims]


def _permutation(emit: Emitter, node: fx.Node) -> fx.Node | None:
    source, order = source_of(node), _order(node)
    composed = source.target is aten.permute.default
    while source.target is aten.permute.default:
        inner = _order(source)
        order = [inner[d] for d in order]
        source = source_of(source)
    if order == list(range(len(order))):
        return source
    moved = [d for d in order if shape(source)[d] != 1]
    if moved == sorted(moved):  # only axes of length one move: a view
        return emit(aten.view.default, source, shape(node))
    return emit(aten.permute.default, source, order) if composed else None


def _is_no_op_copy(node: fx.Node) -> bool:
    return node.target is aten._to_copy.default and value(node).dtype == value(source_of(node)).dtype
