"""Where each value of a graph has the samples of the batch, by the definitions of its ops."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import TrainingGraph
from fqt_deploy.ops.op import op_of
from fqt_deploy.ops.traits import LEADING, Aligned, BatchRule, SampleAxis

aten = torch.ops.aten

NO_RULES: Mapping[Any, BatchRule] = MappingProxyType({})
"""The rules of a graph all of whose ops are defined."""


def sample_axes(graph: TrainingGraph, rules: Mapping[Any, BatchRule] = NO_RULES) -> dict[fx.Node, SampleAxis]:
    """The axis of each value that holds the samples, with rows of each or groups of all, if any.

    Values that no op's definition leads the samples to are left out. Of an op with several results, such as batch
    normalization, only those follow the samples of which its definition says so, by default the first one.

    Args:
        graph: the graph, at any stage.
        rules: how ops that have no definition treat samples, by target.
    """
    found = dict.fromkeys(graph.batch_inputs(), LEADING)
    for node in graph.graph.nodes:
        if node.op == "call_function" and (where := following(node, found, graph.batch, rules)) is not None:
            found[node] = where
    return found


def following(
    node: fx.Node, found: Mapping[fx.Node, SampleAxis], batch: int, rules: Mapping[Any, BatchRule] = NO_RULES
) -> SampleAxis | None:
    """Where the result of ``node`` has its samples, from where values before it have theirs."""
    if node.target is operator.getitem:
        call = call_of(node)
        aligned = None if call.index == 0 else alignment(call.source, found, batch, rules)
        followed = call.index == 0 or (aligned is not None and call.index < aligned.results)
        return found.get(call.source) if followed else None
    if node.target is aten.native_dropout.default:  # not replaced yet: each element keeps its place
        return found.get(call_of(node).input)
    aligned = alignment(node, found, batch, rules)
    return None if aligned is None else aligned.result


def alignment(
    node: fx.Node, found: Mapping[fx.Node, SampleAxis], batch: int, rules: Mapping[Any, BatchRule] = NO_RULES
) -> Aligned | None:
    """How the samples of ``node``'s operands meet.

    Args:
        node: a call.
        found: where values have their samples.
        batch: how many there are.
        rules: how ops that have no definition treat samples, by target.

    Returns:
        None if the op mixes samples, or has operands with samples in places that do not fit.
    """
    op = op_of(node)
    rule = op.traits.batch if op is not None else rules.get(node.target)
    if rule is None or not any(operand in found for operand in node.all_input_nodes):
        return None

    def axis_of(operand: Any) -> SampleAxis | None:
        return found.get(operand) if isinstance(operand, fx.Node) else None

    aligned = rule(call_of(node), axis_of, batch)
    if aligned is None or any(
        operand in found and aligned.operands.get(operand) != found[operand] for operand in node.all_input_nodes
    ):
        return None
    return aligned
