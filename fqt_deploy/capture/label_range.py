"""Which labels a loss takes: those that it can index by, found in the captured graph.

Labels reach an index through reshapes, shifts, bounds and choices between them and a constant::

    %keep = aten.ne(%y, 255);  %index = aten.where(%keep, %y, 0);  aten.gather(%log_probabilities, 1, %index)

Here labels go from 0 to below the extent of axis 1, and 255 is left out. Assertions about labels, such as those of
``one_hot``, bound them as well; they are dropped, because labels are checked before each step.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.capture.class_axis import class_axis
from fqt_deploy.capture.column_ranges import columns_picked
from fqt_deploy.capture.filled_labels import mixture_fact
from fqt_deploy.capture.integer_bounds import always_holds
from fqt_deploy.capture.label_values import (
    HIGHEST,
    KEEPS,
    LOWEST,
    Condition,
    Fact,
    Index,
    LegalLabels,
    compared,
    constant_of,
    fact_of,
    is_integer,
)  # fmt: skip
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import LabelUse, TrainingGraph
from fqt_deploy.core.manifest import IndexRange
from fqt_deploy.ops.aten.spellings import AND, COMPARISONS, MIXTURES, NOT, OR

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


@dataclass(frozen=True)
class _Followed:
    """What was found on the way of one input through a graph.

    Attributes:
        legal: the labels that each index and each assertion allows.
        indexed: the ops that read or write at an index made of them, with the extent of the axis.
        asserted: the assertions about them.
    """

    legal: list[LegalLabels]
    indexed: list[tuple[fx.Node, int]]
    asserted: set[fx.Node]


def find_labels(graph: TrainingGraph, examples: Mapping[str, Tensor] | None = None) -> None:
    """Note in ``graph.signature`` the range of every input, in ``graph.labels`` what labels the loss takes.

    Assertions that this covers are dropped.

    Args:
        graph: the graph as captured; changed in place.
        examples: the batch by name; where the loss leaves out several labels, that which occurs in them is noted.

    Raises:
        FqtError: FQT203 where an index is computed from targets in a way that is not followed, FQT104 for an assertion
            about anything else.
    """
    assertions = graph.calls(*_ASSERTIONS)
    covered: set[fx.Node] = set()
    specs = list(graph.signature)
    for place, spec in enumerate(specs):
        node = graph.placeholder(spec.name)
        if not is_integer(node):
            continue
        followed = _follow(graph, node, strict=spec.role == "target")
        covered |= followed.asserted
        if len(set(columns := _by_column(graph, node, strict=spec.role == "target"))) > 1:
            low, high = min(own.low for own in columns), max(own.high for own in columns)
            ignored = {own.ignore_index for own in columns}
            values = IndexRange(low, high, next(iter(ignored)) if len(ignored) == 1 else None)
            specs[place] = replace(spec, values=values, columns=columns)
            continue
        example = (examples or {}).get(spec.name)
        use = _together(followed.legal, frozenset() if example is None else frozenset(torch.unique(example).tolist()))
        if use is None:
            continue
        specs[place] = replace(spec, values=IndexRange(use.low, use.high, use.ignore_index))
        if spec.role == "target" and graph.labels is None:
            graph.labels = replace(use, class_axis=class_axis(graph, node, followed.indexed, use.high))
    graph.signature = tuple(specs)
    _drop(graph, assertions, covered)


def _drop(graph: TrainingGraph, assertions: list[fx.Node], covered: set[fx.Node]) -> None:
    unknown = [node for node in assertions if node not in covered and _all_hold(node.args[0], False, {}) is None]
    if unknown:
        message = next((f": {text}" for text in unknown[0].args[1:] if isinstance(text, str)), "")
        raise FqtError(
            f"the model asserts something about values, which a compiled step does not check{message}",
            code="FQT104",
            node=unknown[0],
            hint="leave the assertion out, or make sure that it holds: F.one_hot(x.clamp(0, 9), 10). Inputs and labels "
            "themselves are checked before each step",
        )
    for node in assertions:
        graph.graph.erase_node(node)
    if assertions:
        graph.graph.eliminate_dead_code()


def _by_column(graph: TrainingGraph, given: fx.Node, *, strict: bool) -> tuple[IndexRange, ...]:
    """The range of each column of an input, any integer for one that looks nothing up; empty if none is picked.

    Targets are ``strict``: where a loss leaves out a place, as one that shifts labels does, all have one range.
    """
    picked = columns_picked(graph, given)
    legal: dict[int, list[LegalLabels]] = {}
    for node, columns in picked.items():
        followed = _follow(graph, node, strict=strict, without=picked).legal
        for column in columns:
            legal.setdefault(column, []).extend(followed)
    uses = [_together(legal[column], frozenset()) or LabelUse(LOWEST, HIGHEST) for column in sorted(legal)]
    if strict and any(use.low == LOWEST or use.high == HIGHEST for use in uses):
        return ()
    return tuple(IndexRange(use.low, use.high, use.ignore_index) for use in uses)


def _follow(graph: TrainingGraph, labels: fx.Node, *, strict: bool, without: Container[Any] = ()) -> _Followed:
    """What becomes of the integers ``labels``; unless ``strict``, an index of them that is not followed is left out.

    Nodes in ``without`` are not followed.
    """
    facts: dict[Any, Fact] = {labels: Index()}
    found = _Followed([], [], set())
    for node in graph.graph.nodes:
        if node.op != "call_function" or node in without:
            continue
        if node.target in _ASSERTIONS and (asserted := _all_hold(node.args[0], False, facts)) is not None:
            found.legal.extend(asserted)
            found.asserted.add(node)
        for index, extent in _INDEXED[node.target](node) if node.target in _INDEXED else ():
            fact = facts.get(index)
            if fact is None or isinstance(fact, Condition):
                continue
            legal = fact.legal(extent)
            if legal is None and not strict:
                continue
            found.legal.append(_checked(legal, fact, node))
            found.indexed.append((node, extent))
        new = mixture_fact(node, facts) if node.target in MIXTURES else fact_of(node, facts)
        if new is not None:
            facts[node] = new
    return found


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


def _checked(legal: LegalLabels | None, fact: Fact, node: fx.Node) -> LegalLabels:
    if legal is not None:
        if isinstance(fact, Index) and (wrong := [label for label in fact.always if not legal.takes(label)]):
            raise FqtError(
                f"the labels are filled up with {wrong[0]}, which the loss cannot index by",
                code="FQT203",
                node=node,
                hint="fill them up with the label that the loss leaves out, as F.cross_entropy does with ignore_index",
            )
        return legal
    raise FqtError(
        "the loss indexes by numbers that are computed from the labels, and which labels that allows is not known",
        code="FQT203",
        node=node,
        hint="index by the labels themselves; a constant may be added, they may be clamped, one may be replaced",
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
    if target in COMPARISONS and always_holds(node, negated):
        return []
    if target not in COMPARISONS:
        return None
    fact, condition = facts.get(node.args[0]), facts.get(node)
    replaced = fact.replaced if isinstance(fact, Index) else {}
    if isinstance(fact, Index) and replaced:
        condition = compared(node, replace(fact, replaced={}))
    if not isinstance(condition, Condition):
        return None
    if condition.inverted != negated:
        condition = condition.complement()
    if condition is None or condition.without:
        return None
    holds = getattr(operator, COMPARISONS[target])
    right = {label for label, given in replaced.items() if holds(given, constant_of(node.args[1])) is not negated}
    if any(condition.low <= label < condition.high for label in replaced.keys() - right):
        return None
    legal = LegalLabels(condition.low, condition.high, frozenset(right))
    filled = fact.always if isinstance(fact, Index) else ()
    return [legal] if all(legal.takes(label) for label in filled) else None


def _extent(tensor: Any, axis: Any) -> int:
    return int(tensor.meta["val"].shape[axis])
