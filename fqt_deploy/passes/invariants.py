"""Facts about a graph that passes must keep; each raises ``InvariantError`` naming the offending node."""

from __future__ import annotations

from typing import Any

import torch

from fqt_deploy.core.diagnostics import InvariantError
from fqt_deploy.core.graph import TrainingGraph
from fqt_deploy.ops.op import Kind, op_of
from fqt_deploy.passes.check_operators import is_supported
from fqt_deploy.passes.legality import ops_are_legal_in_stage


def inputs_and_outputs_are_named(graph: TrainingGraph) -> None:
    """Placeholders and outputs correspond one to one to the graph's names."""
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    outputs: Any = graph.output_node().args[0]
    if len(placeholders) != len(graph.inputs):
        raise InvariantError(f"{len(placeholders)} placeholders for {len(graph.inputs)} inputs")
    if len(outputs) != len(graph.outputs):
        raise InvariantError(f"{len(outputs)} output values for {len(graph.outputs)} outputs")


def nodes_are_inputs_calls_and_one_output(graph: TrainingGraph) -> None:
    """No node is of another kind, and no call writes its operands: a graph is a pure function."""
    for node in graph.graph.nodes:
        if node.op not in ("placeholder", "call_function", "output"):
            raise InvariantError(f"a node is a {node.op}", node=node)
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            raise InvariantError(f"{node.target} writes its operand", node=node)


def every_value_has_a_shape(graph: TrainingGraph) -> None:
    """Every node but the output knows what it computes."""
    for node in graph.graph.nodes:
        if node.op != "output" and "val" not in node.meta:
            raise InvariantError("a node has no propagated value", node=node)


def updated_state_keeps_its_type(graph: TrainingGraph) -> None:
    """An output that is the next value of a state tensor has that tensor's shape and dtype."""
    inputs = dict(zip(graph.inputs, (n for n in graph.graph.nodes if n.op == "placeholder"), strict=True))
    for name, node in graph.results().items():
        if name in inputs:
            old, new = inputs[name].meta["val"], node.meta["val"]
            if (old.shape, old.dtype) != (new.shape, new.dtype):
                raise InvariantError(
                    f"{name} changes from {old.dtype} {list(old.shape)} to {new.dtype} {list(new.shape)}"
                )


def every_op_has_a_kernel(graph: TrainingGraph) -> None:
    """Code generation knows every op; composite ones are spelled in others."""
    for node in graph.graph.nodes:
        op = op_of(node)
        if not is_supported(node) or (op is not None and op.traits.kind is Kind.COMPOSITE):
            raise InvariantError(f"no kernel for {node.target}", node=node)


ALWAYS = (
    inputs_and_outputs_are_named,
    nodes_are_inputs_calls_and_one_output,
    every_value_has_a_shape,
    ops_are_legal_in_stage,
    updated_state_keeps_its_type,
)
"""What holds before and after every pass."""
