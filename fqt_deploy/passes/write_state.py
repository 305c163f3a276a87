"""Give every updated state tensor that no optimizer op writes a node of its own, which code generation runs in place.

Before::

    %rm = aten.add(aten.mul(%running_mean, 0.9), %new);  return (..., %rm)

After::

    %rm = aten.add(aten.mul(%running_mean, 0.9), %new);  %w = aten.clone(%rm);  return (..., %w)
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.graph import Emitter, TrainingGraph, behind_views
from fqt_deploy.ops.op import Kind, op_of
from fqt_deploy.passes.invariants import every_op_has_a_kernel
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten


@dataclass(frozen=True)
class WriteState(Pass):
    """Insert one ``clone`` per state output that is not the result of an UPDATE op."""

    name = "write-state"
    ensures = (every_op_has_a_kernel,)

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite the outputs; ``loss`` and ``logits`` are left alone."""
        results = graph.results()
        for name, node in results.items():
            if name in graph.state and not is_update(node):
                emit = Emitter(graph, graph.output_node(), layer=node.meta.get("layer", ""), phase="optimizer")
                results[name] = emit(aten.clone.default, node)
        graph.set_results(results)
        return True


def is_update(node: fx.Node) -> bool:
    """Whether ``node`` is an output of an optimizer op, which writes its operands in place."""
    op = op_of(behind_views(node, operator.getitem))
    return op is not None and op.traits.kind is Kind.UPDATE
