"""Compute again in backward what costs little, from values that take less memory, instead of keeping it.

Before::

    %q = aten.add(aten.mul(aten._to_copy(%z), %scale), %bias)     # forward, float32, for attention; %z is int16
    %kept = fqt.gather_rows(%q, %index)                           # backward, on some of the samples

After::

    %kept = fqt.gather_rows(aten.add(aten.mul(aten._to_copy(%z), %scale), %bias), %index)      # backward, in one kernel

What is kept is ``%z``. Only the kept samples are computed again, so it costs no more than it saves. A chain of residual
additions is followed over a few of them: every few blocks one sum is kept, and of the others what was added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.graph import TrainingGraph
from fqt_deploy.ops.op import Kind, op_of
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
fqt = torch.ops.fqt

MOST_OPERATIONS = 24
"""Upper bound of the operations by which a value is computed again."""
MOST_LEAVES = 3
"""Upper bound of the large values that it is computed from: each is a stream of reads."""
SMALL = 8
"""A value is small that has so many times fewer bytes than the one that is computed from it."""
WORTHWHILE = 0.75
"""Upper bound of what more has to be kept for each byte that need not be."""


@dataclass(frozen=True)
class RecomputeCheap(Pass):
    """Give backward its own copy of element-wise values of forward that it reads of some samples alone."""

    name = "recompute-cheap"

    def run(self, graph: TrainingGraph) -> bool:
        """Decide for each value in the order of forward, by what is kept then anyhow."""
        kept = {
            operand
            for node in graph.graph.nodes
            if _is_backward(node)
            for operand in node.all_input_nodes
            if _is_forward(operand) and not _is_elementwise(operand)
        }
        changed = False
        for value in list(graph.graph.nodes):
            if not _is_forward(value) or not _is_elementwise(value):
                continue
            users = [user for user in value.users if _is_backward(user)]
            if not users:
                continue
            found = _expression(value, kept)
            if all(map(_is_gathered, users)) and _pays(value, found, kept):
                kept.update(leaf for leaf in found.leaves if not _free(leaf))
                _copy(graph, value, users, found)
                changed = True
            else:
                kept.add(value)
        return changed


@dataclass(frozen=True)
class _Expression:
    """How a value is computed from others.

    Attributes:
        members: the element-wise nodes, operands first, with the value as the last.
        leaves: what they read.
    """

    members: tuple[fx.Node, ...]
    leaves: tuple[fx.Node, ...]


def _expression(value: fx.Node, kept: set[fx.Node]) -> _Expression:
    """The nodes that compute ``value`` from what is kept, or is not element-wise."""
    members: dict[fx.Node, None] = {}
    leaves: dict[fx.Node, None] = {}

    def visit(node: fx.Node) -> None:
        for operand in node.all_input_nodes:
            if operand in kept or not _is_forward(operand) or not _is_elementwise(operand):
                leaves[operand] = None
            elif operand not in members:
                visit(operand)
        members[node] = None

    visit(value)
    return _Expression(tuple(members), tuple(leaves))


def _pays(value: fx.Node, found: _Expression, kept: set[fx.Node]) -> bool:
    """Whether less has to be kept, and few operations compute the value."""
    size = _bytes(value)
    large = [leaf for leaf in found.leaves if _bytes(leaf) * SMALL > size]
    more = sum(_bytes(leaf) for leaf in found.leaves if leaf not in kept and not _free(leaf))
    operations = [node for node in found.members if node.target is not aten.view.default]
    return len(operations) <= MOST_OPERATIONS and len(large) <= MOST_LEAVES and more <= WORTHWHILE * size


def _copy(graph: TrainingGraph, value: fx.Node, users: Iterable[fx.Node], found: _Expression) -> None:
    """Compute ``value`` once more before each of ``users``."""
    for user in users:
        copies: dict[fx.Node, fx.Node] = {}
        with graph.graph.inserting_before(user):
            for node in found.members:
                copies[node] = graph.graph.node_copy(node, lambda operand: copies.get(operand, operand))  # noqa: B023
                copies[node].meta = {**node.meta, "phase": "backward", "role": "rematerialize"}
        user.replace_input_with(value, copies[value])


def _is_forward(node: fx.Node) -> bool:
    return node.op == "call_function" and node.meta.get("phase") == "forward"


def _is_backward(node: fx.Node) -> bool:
    return node.op == "call_function" and node.meta.get("phase") != "forward"


def _is_elementwise(node: fx.Node) -> bool:
    op = op_of(node)
    return op is not None and op.traits.kind is Kind.ELEMENTWISE and node.target is not fqt.gather_rows.default


def _is_gathered(user: fx.Node) -> bool:
    """Whether ``user`` takes rows, or is a view of which others do and that nothing else reads."""
    if user.target is aten.view.default:
        return all(map(_is_gathered, user.users))
    return user.target is fqt.gather_rows.default


def _free(node: fx.Node) -> bool:
    """Whether ``node`` is there during the whole step: an input or state."""
    return node.op == "placeholder"


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    return math.prod(value.shape) * value.element_size() if isinstance(value, torch.Tensor) else 0
