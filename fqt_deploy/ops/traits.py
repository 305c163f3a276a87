"""Traits: how ops treat the samples of a batch, zeros, and a permutation of their operands.

A trait is stated in the definition of each op. None has a default, and ``tests/ops/test_traits.py`` proves each on the
op's samples: gathering rows commutes, zero in gives zero out, permuting commutes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.call import Call

AxisOf = Callable[[Any], int | None]
"""The axis of an operand that holds the samples of the batch, or rows of each with samples outermost; None if none."""


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


BatchRule = Callable[[Call, AxisOf, int], int | None]
"""The axis of a call's (first) result that holds the samples, from those of its operands and the size of the batch."""


def no_samples(_call: Call, _axis_of: AxisOf, _batch: int) -> int | None:
    """The batch trait of an op none of whose result's axes is the batch."""
    return None


@dataclass(frozen=True)
class Leads:
    """Samples stay on the leading axis: where ``operands`` have theirs, the (first) result has its own.

    Attributes:
        operands: names of the operands with one row, or some, for each sample; absent ones are None.
    """

    operands: tuple[str, ...]

    def __call__(self, call: Call, axis_of: AxisOf, batch: int) -> int | None:
        """The axis 0 if the first operand has its samples there, else None."""
        extents = _extents(call)
        if extents is not None and (not extents or extents[0] % batch):
            return None
        return 0 if axis_of(getattr(call, self.operands[0])) == 0 else None


def leads(*operands: str) -> Leads:
    """The samples of ``operands`` are those of the result, all on the leading axis."""
    return Leads(operands)


def broadcast(call: Call, axis_of: AxisOf, batch: int) -> int | None:
    """The axis of an element-wise result: that of an operand, aligned from the right."""
    extents = _extents(call)
    assert extents is not None
    for operand in _nodes(call):
        axis, of_operand = axis_of(operand), operand.meta["val"].shape
        if axis is None or not of_operand:
            continue
        aligned = axis + len(extents) - len(of_operand)
        if extents[aligned] == int(of_operand[axis]) and extents[aligned] % batch == 0:
            return aligned
    return None


def created(call: Call, _axis_of: AxisOf, batch: int) -> int | None:
    """The leading axis of a constant with one row a sample: all its rows are equal."""
    extents = _extents(call)
    return 0 if extents and extents[0] == batch else None


def scattered(call: Call, _axis_of: AxisOf, _batch: int) -> int | None:
    """The leading axis of rows that were scattered to the samples they belong to."""
    return 0 if call.node.meta.get("scatters") == "samples" else None


def moved(axis: int, order: Sequence[int]) -> int:
    """The axis where a permutation by ``order`` puts ``axis``."""
    return [int(d) % len(order) for d in order].index(axis)


def regrouped(axis: int, source: Sequence[int], target: Sequence[int], batch: int) -> int | None:
    """The axis of a reshaped value that holds the samples: as many elements lie outside of it as before."""
    outside = _product(source[:axis])
    for position, extent in enumerate(target):
        if _product(target[:position]) == outside and extent % batch == 0 and extent:
            return position
    return None


def _product(extents: Sequence[int]) -> int:
    count = 1
    for extent in extents:
        count *= int(extent)
    return count


def _extents(call: Call) -> list[int] | None:
    """Extents of the result; None for several results."""
    value = call.node.meta["val"]
    return [int(d) for d in value.shape] if isinstance(value, torch.Tensor) else None


def _nodes(call: Call) -> list[fx.Node]:
    return [value for value in call.values().values() if isinstance(value, fx.Node)]
