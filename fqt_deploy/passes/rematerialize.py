"""Compute the integer products of forward again in backward instead of keeping them.

Before::

    %z = fqt.binary_conv2d(%bits, %weight_bits, ...)                      # forward; kept until the layer's backward
    %m = aten.gt(aten._to_copy(%z) * %a + %b, 0)                          # backward, a ReLU's mask

After::

    %z  = fqt.binary_conv2d(%bits, %weight_bits, ...)                     # forward; free after the next layer
    %z2 = fqt.binary_conv2d(%bits, %weight_bits, ...)                     # backward, right before its first use
    %m  = aten.gt(aten._to_copy(%z2) * %a + %b, 0)

What is kept of a layer is its input's bits, which its weight gradient reads anyhow, and numbers for each channel. It
costs a third of the products of a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.graph import TrainingGraph
from fqt_deploy.ops.op import Kind, op_of
from fqt_deploy.passes.pass_base import Pass

fqt = torch.ops.fqt


@dataclass(frozen=True)
class Rematerialize(Pass):
    """Give backward its own copy of every 1-bit product of forward, and of the element-wise values between."""

    name = "rematerialize"

    def run(self, graph: TrainingGraph) -> bool:
        """Clone before the first use; equal expressions are cloned once."""
        dependent = _dependent(graph)
        clones: dict[fx.Node, fx.Node] = {}
        for node in list(graph.graph.nodes):
            if node.op != "call_function" or node.meta.get("phase") == "forward":
                continue
            for operand in node.all_input_nodes:
                if operand in dependent:
                    node.replace_input_with(operand, _clone(graph, operand, node, dependent, clones))
        return bool(clones)


def _dependent(graph: TrainingGraph) -> set[fx.Node]:
    """The 1-bit products of forward, and what is computed from them element by element in forward."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.meta.get("phase") != "forward":
            continue
        computed = _is_elementwise(node) and any(operand in found for operand in node.all_input_nodes)
        if computed or node.target in (fqt.binary_conv2d.default, fqt.level_conv2d.default):
            found.add(node)
    return found


def _is_elementwise(node: fx.Node) -> bool:
    op = op_of(node)
    return op is not None and op.traits.kind is Kind.ELEMENTWISE


def _clone(
    graph: TrainingGraph, node: fx.Node, anchor: fx.Node, dependent: set[fx.Node], clones: dict[fx.Node, fx.Node]
) -> fx.Node:
    """A copy of ``node`` before ``anchor``, on copies of its operands."""
    if node not in dependent:
        return node
    if node not in clones:
        operands = {o: _clone(graph, o, anchor, dependent, clones) for o in node.all_input_nodes}
        with graph.graph.inserting_before(anchor):
            copy = graph.graph.node_copy(node, operands.__getitem__)
        copy.meta = {**node.meta, "phase": "backward", "role": "rematerialize"}
        clones[node] = copy
    return clones[node]
