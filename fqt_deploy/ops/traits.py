"""Traits: how ops treat the samples of a batch, zeros, signs, NaN, and a permutation of their operands.

A trait is stated in the definition of each op. None has a default, and ``tests/ops/test_traits.py`` proves each on the
op's samples: gathering rows commutes, zero in gives zero out, nothing negative in gives nothing negative out, NaN in
gives NaN out, permuting commutes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fqt_deploy.core.call import Call


@dataclass(frozen=True)
class SampleAxis:
    """Where a value has the samples of the batch: along ``axis``, whose extent is ``outer * samples * inner``.

    Attributes:
        axis: counted from the front.
        outer: groups that the axis holds of all samples; 1 if samples are outermost.
    """

    axis: int
    outer: int = 1


LEADING = SampleAxis(0)
"""The leading axis holds the samples, or rows of each."""

AxisOf = Callable[[Any], SampleAxis | None]
"""Where an operand has the samples of the batch; None if it has none, or nobody knows."""


@dataclass(frozen=True)
class Aligned:
    """How the samples of operands meet in a call.

    Taking some samples of all ``operands`` takes these samples of the first ``results`` results.

    Attributes:
        result: where the result has them; None for a sum over all samples.
        operands: each operand that has to have samples, and where; all others are read whole.
        results: how many results, from the first on, have them there.
    """

    result: SampleAxis | None
    operands: dict[fx.Node, SampleAxis]
    results: int = 1


class Layout(enum.Enum):
    """The kinds of ops by what becomes of a permutation of the operands' axes."""

    ELEMENTWISE = "elementwise"
    """Permuting all operands alike permutes the result alike."""
    REDUCTION = "reduction"
    """Permuting the operand permutes the axes that are reduced."""
    OPAQUE = "opaque"
    """The op's axes have a meaning: a permutation of its operand stays where it is."""


@dataclass(frozen=True)
class Zero:
    """The operands that make a sample's result zero.

    Attributes:
        operands: names of the operands that matter.
        enough: whether one of them that is zero suffices; otherwise all have to be.
    """

    operands: tuple[str, ...] = ()
    enough: bool = True

    def holds(self, call: Call, is_zero: Callable[[Any], bool]) -> bool:
        """Whether ``call`` gives zero where the operands are zero of which ``is_zero`` says so."""
        found = [is_zero(getattr(call, name)) for name in self.operands]
        return bool(found) and (any(found) if self.enough else all(found))


NEVER_ZERO = Zero()
"""The result need not be zero, whatever the operands are."""


def zero_with_any(*operands: str) -> Zero:
    """The result is zero where one of ``operands`` is."""
    return Zero(operands, enough=True)


def zero_with_all(*operands: str) -> Zero:
    """The result is zero where all of ``operands`` are."""
    return Zero(operands, enough=False)


SignRule = Callable[[Call, Callable[[Any], bool]], bool]
"""Whether a call's result has no element below 0, from which operands and numbers have none; NaN aside."""


@dataclass(frozen=True)
class Sign:
    """Where the (first) result is positive and negative.

    Attributes:
        not_negative: whether no element is below 0.
        same_as: the operand that is above 0 exactly where the result is; None if there is none.
    """

    not_negative: SignRule
    same_as: str | None = None

    def as_positive_as(self, operand: str) -> Sign:
        """The same, of a result that is above 0 exactly where ``operand`` is."""
        return Sign(self.not_negative, operand)


ANY_SIGN = Sign(lambda _call, _not_negative: False)
"""Elements of the result may be below 0, or nobody asks."""
NEVER_NEGATIVE = Sign(lambda _call, _not_negative: True)
"""No element of the result is below 0, whatever the operands are."""


@dataclass(frozen=True)
class _KeptSign:
    operands: tuple[str, ...]

    def __call__(self, call: Call, not_negative: Callable[[Any], bool]) -> bool:
        values = [getattr(call, name) for name in self.operands]
        each = [v for value in values for v in (value if isinstance(value, (list, tuple)) else [value])]
        return all(map(not_negative, each))


def keeps_sign(*operands: str) -> Sign:
    """The result has no element below 0 where none of ``operands``, which may be numbers, has one."""
    return Sign(_KeptSign(operands))


class Nan(enum.Enum):
    """The kinds of ops by what becomes of a NaN in an operand."""

    KEPT = "kept"
    """Each element of the results is NaN where one is that it is computed from."""
    UNKNOWN = "unknown"
    """It may be lost, or nobody asks: whoever has to know of it tests the operands, or the result."""


BatchRule = Callable[[Call, AxisOf, int], Aligned | None]
"""How a call treats samples, from where operands have them and how many there are; None if it mixes them."""


def no_samples(_call: Call, _axis_of: AxisOf, _batch: int) -> Aligned | None:
    """No operand may have samples."""
    return None


@dataclass(frozen=True)
class Rows:
    """Every row along the samples' axis is computed by itself, from the same row of ``operands``.

    Attributes:
        operands: names of those; absent ones are None.
        leading: whether rows lie along the leading axis only; else along any but the last.
        summed: whether the result is a sum over the rows.
    """

    operands: tuple[str, ...]
    leading: bool = True
    summed: bool = False

    def __call__(self, call: Call, axis_of: AxisOf, batch: int) -> Aligned | None:
        """The one axis on which ``operands`` have their samples."""
        operands = [operand for name in self.operands if isinstance(operand := getattr(call, name), fx.Node)]
        where = only(axis_of(operand) for operand in operands)
        if where is None or where.axis > (0 if self.leading else len(_extents(operands[0])) - 2):
            return None
        return Aligned(None if self.summed else where, dict.fromkeys(operands, where))


def leads(*operands: str) -> Rows:
    """Each row of the result comes from the same row of ``operands``, along the leading axis."""
    return Rows(operands)


def channels_last(*operands: str) -> Rows:
    """Each row of the result comes from the same row of ``operands``, along any axis but the last."""
    return Rows(operands, leading=False)


def summed(*operands: str) -> Rows:
    """The result is a sum over rows, the same of each of ``operands``."""
    return Rows(operands, summed=True)


def broadcast(call: Call, axis_of: AxisOf, batch: int) -> Aligned | None:
    """Operands of an element-wise op, aligned from the right."""
    extents = _extents(call.node)
    shapes = {operand: _extents(operand) for operand in _nodes(call)}
    where = only(_shifted(axis_of(o), len(extents) - len(shape)) for o, shape in shapes.items())
    if where is None:
        return None
    found = {}
    for operand, shape in shapes.items():
        axis = where.axis - (len(extents) - len(shape))
        if axis >= 0 and shape[axis] == extents[where.axis]:
            found[operand] = SampleAxis(axis, where.outer)
    return Aligned(where, found)


def moved(call: Call, axis_of: AxisOf, axis: Callable[[int], int | None]) -> Aligned | None:
    """The samples of the first operand lie along ``axis(its axis)`` of the result; None for None."""
    source = next(iter(call.values().values()))
    where = axis_of(source)
    place = None if where is None else axis(where.axis)
    return None if where is None or place is None else Aligned(SampleAxis(place, where.outer), {source: where})


def regrouped(where: SampleAxis, source: Sequence[int], target: Sequence[int], batch: int) -> SampleAxis | None:
    """Where a reshaped value has its samples: as many elements lie outside of them as before."""
    outside = _product(source[: where.axis]) * where.outer
    for axis, extent in enumerate(target):
        before = _product(target[:axis])
        if before and outside % before == 0 and extent and extent % (outside // before * batch) == 0:
            return SampleAxis(axis, outside // before)
    return None


def only(places: Iterable[SampleAxis | None]) -> SampleAxis | None:
    """The one place that there is; None if there are several, or none."""
    found = {place for place in places if place is not None}
    return found.pop() if len(found) == 1 else None


def _shifted(where: SampleAxis | None, by: int) -> SampleAxis | None:
    return None if where is None else SampleAxis(where.axis + by, where.outer)


def _product(extents: Sequence[int]) -> int:
    count = 1
    for extent in extents:
        count *= int(extent)
    return count


def _extents(node: fx.Node) -> list[int]:
    return [int(d) for d in node.meta["val"].shape]


def _nodes(call: Call) -> list[fx.Node]:
    return [value for value in call.values().values() if isinstance(value, fx.Node)]
