"""Which labels a loss takes: those that it can index by, found in the captured graph.

Labels reach an index through reshapes, shifts, bounds and choices between them and a constant::

    %keep = aten.ne(%y, 255);  %index = aten.where(%keep, %y, 0);  aten.gather(%log_probabilities, 1, %index)

Here labels go from 0 to below the extent of axis 1, and 255 is left out. Assertions about labels, such as those of
``one_hot``, bound them as well; they are dropped, because labels are checked before each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.capture.class_axis import class_axis
from fqt_deploy.capture.label_values import (
    AND,
    COMPARISONS,
    HIGHEST,
    KEEPS,
    LOWEST,
    NOT,
    OR,
    Condition,
    Fact,
    Index,
    LegalLabels,
    fact_of,
    is_integer,
)  # fmt: skip
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import LabelUse, TrainingGraph

aten = torch.ops.aten


def _along_axis(node: fx.Node) -> Iterator[tuple[Any, int]]:
    yield node.args[2], _extent(node.args[0], node.args[1])


def _by_axis(node: fx.Node) -> Iterator[tuple[Any, int]]:
    indices: Any = node.args[1]
    yield from ((index, _extent(node.args[0], axis)) for axis, index in enumerate(indices))


_INDEXED: dict[Any, Callable[[fx.Node], Iterator[tuple[Any, int]]]] = {
    aten.gather.default: _along_axis,
    aten.scatter.value: _along_axis,
    aten.scatter.src: _along_axis,
    aten.scatter_add.default: _along_axis,
    aten.scatter_reduce.two: _along_axis,
    aten.index_select.default: _along_axis,
    aten.index_add.default: _along_axis,
    aten.index.Tensor: _by_axis,
    aten._unsafe_index.Tensor: _by_axis,
    aten.index_put.default: _by_axis,
    aten.embedding.default: lambda n: iter([(n.args[1], _extent(n.args[0], 0))]),
    aten.embedding_dense_backward.default: lambda n: iter([(n.args[1], int(n.args[2]))]),  # type: ignore[arg-type]
}
"""Ops that read or write at an index: pairs of the index and the extent of the axis."""

_ANY = (aten.any.default, aten.any.dim, aten.any.dims)
_ALL = (aten.all.default, aten.all.dim, aten.all.dims)
_ASSERTIONS = (
    aten._assert_async.default, aten._assert_async.msg, aten._functional_assert_async.msg, aten._assert_scalar.default,
)  # fmt: skip
"""Ops that raise where a condition does not hold."""


def find_labels(graph: TrainingGraph, example: Tensor | None = None) -> None:
    """Note in ``graph.labels`` what labels the loss takes, and drop the assertions that this covers.

    Args:
        graph: the graph as captured; changed in place.
        example: targets; where the loss leaves out several labels, that which occurs in them is noted.

    Raises:
        FqtError: FQT203 where an index is computed from labels in a way that is not followed, FQT104 for an assertion
            about anything else.
    """
    facts: dict[Any, Fact] = {}
    legal: list[LegalLabels] = []
    indexed: list[tuple[fx.Node, int]] = []
    assertions = graph.calls(*_ASSERTIONS)
    if "y" in graph.inputs and is_integer(graph.placeholder("y")):
        facts[graph.placeholder("y")] = Index()
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        if node in assertions:
            legal += _asserted(node, facts)
        for index, extent in _INDEXED[node.target](node) if node.target in _INDEXED else ():
            fact = facts.get(index)
            if fact is not None and not isinstance(fact, Condition):
                legal.append(_checked(fact.legal(extent), node))
                indexed.append((node, extent))
        if (found := fact_of(node, facts)) is not None:
            facts[node] = found
    for node in assertions:
        graph.graph.erase_node(node)
    if assertions:
        graph.graph.eliminate_dead_code()
    graph.labels = _together(legal, frozenset() if example is None else frozenset(torch.unique(example).tolist()))
    if graph.labels is not None:
        graph.labels = replace(graph.labels, class_axis=class_axis(graph, indexed, graph.labels.high))


def _together(legal: list[LegalLabels], seen: frozenset[Any]) -> LabelUse | None:
    low, high = max((own.low for own in legal), default=LOWEST), min((own.high for own in legal), default=HIGHEST)
    if (low, high) == (LOWEST, HIGHEST):
        return None
    skipped = sorted(frozenset[int]().union(*(own.skipped for own in legal)))
    taken = [label for label in skipped if all(own.takes(label) for own in legal) and not low <= label < high]
    met = [label for label in taken if label in seen]
    if len(met) > 1:
        raise FqtError(
            f"the loss leaves out several labels that are no classes: {', '.join(map(str, met))}",
            code="FQT203",
            hint="mark what is left out by one label",
        )
    return LabelUse(low, high, next(iter(met or taken), None))


def _checked(legal: LegalLabels | None, node: fx.Node) -> LegalLabels:
    if legal is not None:
        return legal
    raise FqtError(
        "the loss indexes by numbers that are computed from the labels, and which labels that allows is not known",
        code="FQT203",
        node=node,
        hint="index by the labels themselves; a constant may be added, they may be clamped, one may be replaced",
    )


def _asserted(node: fx.Node, facts: Mapping[Any, Fact]) -> list[LegalLabels]:
    found = _all_hold(node.args[0], False, facts)
    if found is not None:
        return found
    raise FqtError(
        "the model asserts something about values, which a compiled step does not check",
        code="FQT104",
        node=node,
        hint="leave the assertion out; labels are checked before each step",
    )


def _all_hold(node: Any, negated: bool, facts: Mapping[Any, Fact]) -> list[LegalLabels] | None:
    """The labels for which ``node``, a condition, holds everywhere; None if it is not about labels."""
    if not isinstance(node, fx.Node) or not node.args:
        return None
    target: Any = node.target
    if target in NOT:
        return _all_hold(node.args[0], not negated, facts)
    if target in KEEPS or target in (_ANY if negated else _ALL):
        return _all_hold(node.args[0], negated, facts)
    if target in (OR if negated else AND):
        parts = [_all_hold(part, negated, facts) for part in node.args[:2]]
        return None if None in parts else [own for part in parts for own in part or ()]
    condition = facts.get(node)
    if target not in COMPARISONS or not isinstance(condition, Condition):
        return None
    if condition.inverted != negated:
        condition = condition.complement()
    return None if condition is None or condition.without else [LegalLabels(condition.low, condition.high)]


def _extent(tensor: Any, axis: Any) -> int:
    return int(tensor.meta["val"].shape[axis])
