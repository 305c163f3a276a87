"""Reduce every alias and reshape to ``view``, ``permute`` and ``expand``, and cancel what cancels.

Before::

    %a = aten.detach(%x); %b = aten.unsqueeze(%a, 1); %t = aten.permute(%w, [1, 0]); %tt = aten.permute(%t, [1, 0])

After::

    %b = aten.view(%x, [8, 1, 64])            (and %tt is %w)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, shape, value
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
prims = torch.ops.prims

_ALIASES = (aten.alias.default, aten.detach.default, aten.clone.default, aten.lift_fresh_copy.default)
_RESHAPES = (
    aten.view.default, aten.reshape.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default, prims.squeeze.default,
)  # fmt: skip


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
    source: Any = node.args[0] if node.args else None
    emit = Emitter(graph, node)
    if node.target in _ALIASES or _is_no_op_copy(node):
        return source
    if node.target in _RESHAPES:
        while source.target is aten.view.default:
            source = source.args[0]
        if shape(source) == shape(node):
            return source
        if node.target is aten.view.default and source is node.args[0]:
            return None
        return emit(aten.view.default, source, shape(node))
    if node.target is aten.permute.default:
        return _permutation(emit, node, source)
    if node.target is prims.broadcast_in_dim.default:
        target, dims = list(node.args[1]), list(node.args[2])  # type: ignore[arg-type]
        aligned = [shape(source)[dims.index(d)] if d in dims else 1 for d in range(len(target))]
        viewed = source if aligned == shape(source) else emit(aten.view.default, source, aligned)
        return viewed if aligned == target else emit(aten.expand.default, viewed, target)
    if node.target is aten.expand.default and shape(source) == shape(node):
        return source
    return None


def _permutation(emit: Emitter, node: fx.Node, source: fx.Node) -> fx.Node | None:
    order = [int(d) % len(shape(node)) for d in node.args[1]]  # type: ignore[union-attr]
    composed = source.target is aten.permute.default
    while source.target is aten.permute.default:
        inner = [int(d) % len(order) for d in source.args[1]]  # type: ignore[union-attr]
        order = [inner[d] for d in order]
        source = source.args[0]  # type: ignore[assignment]
    if order == list(range(len(order))):
        return source
    moved = [d for d in order if shape(source)[d] != 1]
    if moved == sorted(moved):  # only axes of length one move: a view
        return emit(aten.view.default, source, shape(node))
    return emit(aten.permute.default, source, order) if composed else None


def _is_no_op_copy(node: fx.Node) -> bool:
    return node.target is aten._to_copy.default and value(node).dtype == value(node.args[0]).dtype
