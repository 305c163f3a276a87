"""Give every operand of a product a node of its own: kernels written by hand know their operands by their places.

Before::

    %a = fqt.attention(%q, %x, %x, ...)                   # keys that are the values, too

After::

    %y = aten.view(%x, [8, 6, 1, 16]);  %a = fqt.attention(%q, %x, %y, ...)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.graph import Emitter, TrainingGraph, propagate, shape
from fqt_deploy.ops.op import Kind, op_of
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten


@dataclass(frozen=True)
class SeparateOperands(Pass):
    """Insert a view, which costs nothing, where a product reads the same tensor a second time."""

    name = "separate-operands"

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite the operands of every product, and return whether one was read twice."""
        changed = False
        for node in list(graph.graph.nodes):
            op = op_of(node)
            if op is not None and op.traits.kind is Kind.PRODUCT:
                changed |= _separate(graph, node)
        return changed


def _separate(graph: TrainingGraph, node: fx.Node) -> bool:
    seen: set[fx.Node] = set()

    def own(operand: Any) -> Any:
        if not isinstance(operand, fx.Node) or operand not in seen:
            seen.add(operand)
            return operand
        return Emitter(graph, node)(aten.view.default, operand, list(shape(operand)))

    args, kwargs = fx.map_arg(node.args, own), fx.map_arg(node.kwargs, own)
    if args == node.args and kwargs == node.kwargs:
        return False
    node.args, node.kwargs = args, kwargs
    propagate(node)
    return True
