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

from fqt_deploy.core.graph import Emitter, TrainingGraph
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
        output = graph.output_node()
        values = list(output.args[0])  # type: ignore[arg-type]
        for position, name in enumerate(graph.outputs):
            node = values[position]
            if name in graph.state and isinstance(node, fx.Node) and not is_update(node):
                emit = Emitter(graph, output, layer=node.meta.get("layer", ""), phase="optimizer")
                values[position] = emit(aten.clone.default, node)
        output.args = (tuple(values),)
        return True


def is_update(node: fx.Node) -> bool:
    """Whether ``node`` is an output of an optimizer op, which writes its operands in place."""
    source = node
    while source.target in (aten.view.default, operator.getitem):
        source = source.args[0]  # type: ignore[assignment]
    op = op_of(source)
    return op is not None and op.traits.kind is Kind.UPDATE
