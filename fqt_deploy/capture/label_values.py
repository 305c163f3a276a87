"""Integers and conditions that a graph computes from labels, as functions of one label."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.ops.aten.spellings import AND, COMPARISONS, ELEMENTS, IN_ORDER, MIXTURES, NOT, OR

aten = torch.ops.aten

LOWEST, HIGHEST = -(2**63), 2**63 - 1
"""Bounds of what an int64 can be: a side that nothing bounds. The largest number itself is left out."""


@dataclass(frozen=True)
class LegalLabels:
    """Labels from ``low`` to below ``high``, and those in ``skipped``."""

    low: int
    high: int
    skipped: frozenset[int] = frozenset()

    def takes(self, label: int) -> bool:
        """Whether ``label`` is one of the labels."""
        return self.low <= label < self.high or label in self.skipped


@dataclass(frozen=True)
class Index:
    """An integer made of a label: ``label + shift``, but for some labels a constant.

    Attributes:
        shift: number that is added to a label.
        below: labels below the first number have the second in place of the sum.
        above: labels from the first number on have the second.
        replaced: by label, the constant that single labels have.
        always: labels that occur in every batch, because constants are put in their place.
    """

    shift: int = 0
    below: tuple[int, int] | None = None
    above: tuple[int, int] | None = None
    replaced: Mapping[int, int] = field(default_factory=dict)
    always: frozenset[int] = frozenset()

    def legal(self, extent: int) -> LegalLabels | None:
        """The labels for which it is from 0 to below ``extent``; None if they are no interval and single labels."""
        low, high = -self.shift, extent - self.shift
        skipped = {label for label, constant in self.replaced.items() if 0 <= constant < extent}
        if self.below is not None and 0 <= self.below[1] < extent and _all_in(self.below[0], low, skipped):
            low = LOWEST
        if self.above is not None and 0 <= self.above[1] < extent and _all_in(high, self.above[0], skipped):
            high = HIGHEST
        if any(low <= label < high for label in self.replaced.keys() - skipped):
            return None
        return LegalLabels(low, high, frozenset(skipped))

    def differs_from(self, constant: int) -> Condition | None:
        """The labels for which it is not ``constant``; None if that is no interval without single labels."""
        low, high = LOWEST, HIGHEST
        if self.below is not None and self.below[1] == constant:
            low = self.below[0]
        if self.above is not None and self.above[1] == constant:
            high = self.above[0]
        single = {label for label, given in self.replaced.items() if given == constant}
        label = constant - self.shift
        between = (self.below is None or label >= self.below[0]) and (self.above is None or label < self.above[0])
        if between and label not in self.replaced:
            single.add(label)
        outside = [other for other in self.replaced if not low <= other < high]
        return None if outside else Condition(low, high, frozenset(single))

    def label_of(self, constant: int) -> int | None:
        """The label for which it is ``constant`` by its sum; None if there is none."""
        label = constant - self.shift
        bounded = (self.below and label < self.below[0]) or (self.above and label >= self.above[0])
        return None if bounded or label in self.replaced else label

    def mapped(self, constant: Any, shift: int = 0) -> Index:
        """This integer with ``constant`` applied to all its constants, and ``shift`` added."""
        return Index(
            self.shift + shift,
            None if self.below is None else (self.below[0], constant(self.below[1])),
            None if self.above is None else (self.above[0], constant(self.above[1])),
            {label: constant(given) for label, given in self.replaced.items()},
            self.always,
        )

    def at_least(self, bound: int) -> Index:
        """The larger of this integer and ``bound``."""
        bounded = self.mapped(lambda given: max(given, bound))
        first = bound - self.shift
        return bounded if self.below and self.below[0] >= first else replace(bounded, below=(first, bound))

    def at_most(self, bound: int) -> Index:
        """The smaller of this integer and ``bound``."""
        bounded = self.mapped(lambda given: min(given, bound))
        first = bound - self.shift + 1
        return bounded if self.above and self.above[0] <= first else replace(bounded, above=(first, bound))


def _all_in(first: int, end: int, labels: set[int]) -> bool:
    return end - first <= len(labels) and all(label in labels for label in range(first, end))


@dataclass(frozen=True)
class Within:
    """An integer from ``low`` to ``high``, of which more is not known."""

    low: int
    high: int

    def legal(self, extent: int) -> LegalLabels | None:
        """All labels, if it is from 0 to below ``extent``; else None."""
        return LegalLabels(LOWEST, HIGHEST) if self.low >= 0 and self.high < extent else None

    def differs_from(self, constant: int) -> Condition | None:
        """All labels, if it cannot be ``constant``; else None."""
        return None if self.low <= constant <= self.high else Condition()


@dataclass(frozen=True)
class Unknown:
    """An integer computed from labels in a way that is not followed."""

    def legal(self, _extent: int) -> LegalLabels | None:
        """None: it is not known for which labels the integer is legal."""
        return None

    def differs_from(self, _constant: int) -> Condition | None:
        """None: it is not known for which labels the integer differs from a constant."""
        return None


@dataclass(frozen=True)
class Condition:
    """True for labels from ``low`` to below ``high`` but those in ``without``; ``inverted``: false for these."""

    low: int = LOWEST
    high: int = HIGHEST
    without: frozenset[int] = frozenset()
    inverted: bool = False

    def complement(self) -> Condition | None:
        """The condition that holds where this one does not, if it is all labels below or all from one on."""
        if self.without or (self.low > LOWEST) == (self.high < HIGHEST):
            return None
        return Condition(self.high, HIGHEST) if self.low == LOWEST else Condition(LOWEST, self.low)


Integer = Index | Within | Unknown
Fact = Integer | Condition

KEEPS = (*ELEMENTS, operator.getitem)
"""Ops whose result holds elements of their operand."""


def fact_of(node: fx.Node, facts: Mapping[Any, Fact]) -> Fact | None:
    """The facts known of the value of ``node``; None if it is no integer or condition made of labels."""
    if not any(operand in facts for operand in node.all_input_nodes) or constant_of(node) is not None:
        return None
    target: Any = node.target
    first = facts.get(node.args[0]) if node.args else None
    if target in COMPARISONS:
        return compared(node, first)
    if target in NOT and isinstance(first, Condition):
        return replace(first, inverted=not first.inverted)
    if target in (*AND, *OR):
        return _joined(node, facts)
    if target in KEEPS and isinstance(first, Condition) and dtype_of(node) == torch.bool:
        return first
    if not is_integer(node):
        return None
    if target in KEEPS:
        return Within(0, 1) if isinstance(first, Condition) else first
    return _where(node, facts) if target is aten.where.self else _bounded(node, facts)


def _bounded(node: fx.Node, facts: Mapping[Any, Fact]) -> Integer:
    """A sum with a constant, a bound, or a remainder."""
    name = str(node.target).split(".")[1]
    operands = list(node.args)
    if name in ("add", "maximum", "minimum") and operands[0] not in facts:
        operands.reverse()
    index, values = facts.get(operands[0]), [constant_of(operand) for operand in operands[1:]]
    value = values[0] if values else None
    if name == "remainder" and value is not None and value > 0:
        return Within(0, value - 1)
    if not isinstance(index, Index) or node.kwargs or not any(v is not None for v in values):
        return Unknown()
    if name in ("add", "sub") and value is not None and len(values) == 1:
        change = value if name == "add" else -value
        return index.mapped(lambda constant: constant + change, change)
    if name in ("clamp", "clamp_min", "maximum", "clamp_max", "minimum"):
        low, high = (None, value) if name in ("clamp_max", "minimum") else (value, values[1] if values[1:] else None)
        index = index if low is None else index.at_least(low)
        return index if high is None else index.at_most(high)
    return Unknown()


def _where(node: fx.Node, facts: Mapping[Any, Fact]) -> Integer:
    """A choice between an integer made of labels and a constant."""
    picks: Any = node.args[0]
    condition, chosen, other = facts.get(picks), node.args[1], node.args[2]
    if condition is None and chosen not in facts:
        chosen, other = other, chosen
    if isinstance(condition, Condition) and not condition.inverted and chosen not in facts:
        condition, chosen, other = condition.complement(), other, chosen
    elif isinstance(condition, Condition) and condition.inverted:
        condition, chosen, other = replace(condition, inverted=False), other, chosen
    fact, constant = facts.get(chosen), constant_of(other)
    if condition == Condition() and isinstance(fact, (Index, Within)):
        return fact
    if not isinstance(fact, Index) or constant is None:
        return Unknown()
    if not isinstance(condition, Condition):  # a mask: its constant goes the way that a label goes
        label = None if _is_made_of(picks, facts) else fact.label_of(constant)
        return Unknown() if label is None else replace(fact, always=fact.always | {label})
    hidden = (fact.below and fact.below[0] > condition.low) or (fact.above and fact.above[0] < condition.high)
    half = condition.low > LOWEST or condition.high < HIGHEST
    if place_of(picks, facts) != place_of(chosen, facts) or (half and hidden):
        return Unknown()
    if condition.low > LOWEST:
        fact = replace(fact, below=(condition.low, constant))
    if condition.high < HIGHEST:
        fact = replace(fact, above=(condition.high, constant))
    inside = {label: given for label, given in fact.replaced.items() if condition.low <= label < condition.high}
    return replace(fact, replaced={**inside, **dict.fromkeys(condition.without, constant)})


def _is_made_of(node: fx.Node, facts: Mapping[Any, Fact]) -> bool:
    """Whether ``node`` depends on any of the labels."""
    seen, pending = {node}, [node]
    while pending:
        last = pending.pop()
        if last in facts:
            return True
        pending += [operand for operand in last.all_input_nodes if operand not in seen]
        seen.update(last.all_input_nodes)
    return False


def place_of(node: Any, facts: Mapping[Any, Fact]) -> Any:
    """Which label each element of ``node`` is made of, as a value to compare: how labels were moved, and the shape.

    None where they are of different places.
    """
    if node.op == "placeholder":
        return (), tuple(node.meta["val"].shape)
    if node.target in MIXTURES:
        return (node.name,), tuple(node.meta["val"].shape)
    operands = [operand for operand in node.all_input_nodes if operand in facts]
    if not operands:  # a column, which is followed by itself
        return (node.name,), tuple(node.meta["val"].shape)
    places = {place_of(operand, facts) for operand in operands}
    if len(places) != 1 or None in places:
        return None
    ((moves, before),) = places
    after = tuple(node.meta["val"].shape)
    kept_order = node.target in IN_ORDER or (node.target not in KEEPS and before == after)
    return moves if kept_order else (*moves, (str(node.target), before, str(node.args[1:]))), after


def compared(node: fx.Node, first: Fact | None) -> Condition | None:
    """The labels for which the comparison ``node`` of ``first`` with a constant holds; None if they are not known."""
    name, value = COMPARISONS[node.target], constant_of(node.args[1])
    if value is None or first is None or isinstance(first, Condition):
        return None
    if name in ("eq", "ne"):
        found = first.differs_from(value)
        return None if found is None else replace(found, inverted=name == "eq")
    if not isinstance(first, Index) or first.replaced or (first.below and first.above):
        return None
    less, least = name in ("lt", "le"), value + (name in ("le", "gt"))  # below it: lt and le; from it on: ge and gt
    bound = least - first.shift
    clamped = first.below or first.above
    if clamped is None:
        return Condition(high=bound) if less else Condition(low=bound)
    end, constant = clamped
    if (constant < least) is not less:
        return None
    if (first.below is not None) is less:  # the labels of the constant are the outermost of those for which it holds
        return Condition(high=max(bound, end)) if less else Condition(low=min(bound, end))
    return Condition() if (bound >= end if less else bound <= end) else None


def _joined(node: fx.Node, facts: Mapping[Any, Fact]) -> Condition | None:
    """The conjunction of two conditions that leave labels out, or the disjunction of two that pick them; else None."""
    a, b = (facts.get(operand) for operand in node.args[:2])
    if not (isinstance(a, Condition) and isinstance(b, Condition)) or a.inverted != b.inverted:
        return None
    if place_of(node, facts) is None:
        return None
    both = Condition(max(a.low, b.low), min(a.high, b.high), a.without | b.without, a.inverted)
    return both if a.inverted == (node.target in OR) else None


def constant_of(operand: Any) -> int | None:
    """The integer that ``operand`` is: a number, or a tensor full of one."""
    while isinstance(operand, fx.Node) and operand.target in KEEPS:
        operand = operand.args[0]
    if isinstance(operand, fx.Node):
        if operand.target in (aten.zeros.default, aten.zeros_like.default):
            return 0
        fills: dict[Any, int] = {aten.scalar_tensor.default: 0, aten.full.default: 1, aten.full_like.default: 1}
        operand = operand.args[fills[operand.target]] if operand.target in fills else None
    if isinstance(operand, bool) or not isinstance(operand, (int, float)) or not math.isfinite(operand):
        return None
    return int(operand) if operand == int(operand) else None


def dtype_of(node: fx.Node) -> torch.dtype | None:
    """The dtype of a node's value; None if it has several."""
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None


def is_integer(node: fx.Node) -> bool:
    """Whether a node's value is a tensor of integers; booleans are none."""
    dtype = dtype_of(node)
    return dtype is not None and not dtype.is_floating_point and dtype != torch.bool
