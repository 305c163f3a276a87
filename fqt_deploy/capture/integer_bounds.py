"""Bounds of the integers that a graph computes, whatever its inputs are: of a clamp, a remainder, a position."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fqt_deploy.capture.label_values import KEEPS, constant_of, dtype_of
from fqt_deploy.ops.aten.spellings import COMPARISONS

aten = torch.ops.aten

_Pair = tuple[int, int]
Bounds = _Pair | None
"""The lowest and the highest value; None if they are not known."""
_Of = Callable[[Any], Bounds]
_Rule = Callable[[fx.Node, _Of], Bounds]


def always_holds(node: fx.Node, negated: bool) -> bool:
    """Whether the comparison ``node`` with a constant is true for all values; with ``negated``, false."""
    value, bounds = constant_of(node.args[1]), integer_bounds(node.args[0])
    if value is None or bounds is None:
        return False
    low, high = bounds
    sure = {
        "eq": (low == value == high, value < low or high < value),
        "ne": (value < low or high < value, low == value == high),
        "lt": (high < value, low >= value),
        "le": (high <= value, low > value),
        "gt": (low > value, high <= value),
        "ge": (low >= value, high < value),
    }
    return sure[COMPARISONS[node.target]][negated]


def integer_bounds(value: Any) -> Bounds:
    """The bounds of a number or of the elements of a node's value; None if they are not known or no integers."""
    known: dict[Any, Bounds] = {}

    def of(operand: Any) -> Bounds:
        if operand not in known:
            known[operand] = _bounds(operand, of)
        return known[operand]

    return of(value)


def _bounds(value: Any, of: _Of) -> Bounds:
    if (constant := constant_of(value)) is not None:
        return constant, constant
    if not isinstance(value, fx.Node) or (dtype := dtype_of(value)) is None or dtype.is_floating_point:
        return None
    if dtype == torch.bool:
        return 0, 1
    rule = (lambda node, of: of(node.args[0])) if value.target in KEEPS else _RULES.get(value.target)
    bounds = None if rule is None else rule(value, of)
    limits = torch.iinfo(dtype)
    return bounds if bounds is not None and limits.min <= bounds[0] and bounds[1] <= limits.max else None


def _clamped(low_at: int | None, high_at: int | None) -> _Rule:
    """The rule of a clamp whose lower and upper bound are these arguments."""

    def rule(node: fx.Node, of: _Of) -> Bounds:
        low, high = (
            constant_of(node.args[at]) if at is not None and at < len(node.args) else None for at in (low_at, high_at)
        )
        own = of(node.args[0])
        if own is None and (low is None or high is None):
            return None
        first, last = own or (low, high)
        assert first is not None
        assert last is not None
        if low is not None:
            first, last = max(first, low), max(last, low)
        return (first, last) if high is None else (min(first, high), min(last, high))

    return rule


def _remainder(node: fx.Node, _of: _Of) -> Bounds:
    divisor = constant_of(node.args[1])
    return (0, divisor - 1) if divisor is not None and divisor > 0 else None


def _position(node: fx.Node, _of: _Of) -> Bounds:
    """The largest or smallest element's position, along an axis or among all."""
    of: Any = node.args[0]
    shape = of.meta["val"].shape
    dim: Any = node.args[1] if len(node.args) > 1 else None
    return 0, max(int(math.prod(shape) if dim is None else shape[dim]) - 1, 0)


def _sum(node: fx.Node, of: _Of) -> Bounds:
    own, summed = of(node.args[0]), node.args[0]
    assert isinstance(summed, fx.Node)
    count = summed.meta["val"].numel() // max(node.meta["val"].numel(), 1)
    return None if own is None else (own[0] * count, own[1] * count)


def _quotient(node: fx.Node, of: _Of) -> Bounds:
    own, divisor = of(node.args[0]), constant_of(node.args[1])
    if own is None or divisor is None or divisor <= 0 or node.kwargs.get("rounding_mode", "floor") != "floor":
        return None
    return own[0] // divisor, own[1] // divisor


def _of_two(result: Callable[[_Pair, _Pair], _Pair], at: int = 0) -> _Rule:
    """The rule of an op of two integers, arguments ``at`` and the next, from the bounds of both."""

    def rule(node: fx.Node, of: _Of) -> Bounds:
        a, b = of(node.args[at]), of(node.args[at + 1])
        return None if a is None or b is None or node.kwargs else result(a, b)

    return rule


def _either(a: _Pair, b: _Pair) -> _Pair:
    return min(a[0], b[0]), max(a[1], b[1])


def _written(node: fx.Node, of: _Of) -> Bounds:
    """Elements of what is written into, or of what is written, as the order of sorted elements is."""
    own, source = of(node.args[0]), of(node.args[3])
    return None if own is None or source is None else _either(own, source)


def _product(a: _Pair, b: _Pair) -> _Pair:
    corners = [x * y for x in a for y in b]
    return min(corners), max(corners)


def _elements(node: fx.Node, of: _Of) -> Bounds:
    """Some elements of the first operand, whichever."""
    return of(node.args[0])


def _joined(node: fx.Node, of: _Of) -> Bounds:
    parts: Any = node.args[0]
    own = [of(part) for part in parts]
    known = [bounds for bounds in own if bounds is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if len(known) == len(own) else None


def _range(node: fx.Node, _of: _Of) -> Bounds:
    """The places along an axis; a step of another size makes no difference to what they lie between."""
    first, *rest = (constant_of(argument) for argument in node.args[:2])
    low, end = (first, rest[0]) if rest else (0, first)
    return None if low is None or end is None else (min(low, end), max(low, end - 1))


_RULES: dict[Any, _Rule] = {
    aten.clamp.default: _clamped(1, 2), aten.clamp_min.default: _clamped(1, None),
    aten.clamp_max.default: _clamped(None, 1),
    aten.remainder.Scalar: _remainder, aten.remainder.Tensor: _remainder,
    aten.argmax.default: _position, aten.argmin.default: _position,
    aten.sum.dim_IntList: _sum, aten.sum.default: _sum,
    aten.div.Tensor_mode: _quotient, aten.floor_divide.default: _quotient,
    aten.add.Tensor: _of_two(lambda a, b: (a[0] + b[0], a[1] + b[1])),
    aten.sub.Tensor: _of_two(lambda a, b: (a[0] - b[1], a[1] - b[0])),
    aten.mul.Tensor: _of_two(_product),
    aten.where.self: _of_two(_either, 1), aten.scatter.src: _written, aten.cat.default: _joined,
    aten.gather.default: _elements, aten.index_select.default: _elements, aten.index.Tensor: _elements,
    aten.arange.default: _range, aten.arange.start: _range, aten.arange.start_step: _range,
    aten.maximum.default: _of_two(lambda a, b: (max(a[0], b[0]), max(a[1], b[1]))),
    aten.minimum.default: _of_two(lambda a, b: (min(a[0], b[0]), min(a[1], b[1]))),
}  # fmt: skip
