"""The update of one parameter, as a part of the step's graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import fx

from fqt_deploy.core.graph import Emitter


@dataclass(frozen=True)
class Operands:
    """What an update reads.

    Attributes:
        parameter: [rows, elements], or fewer axes; float32.
        state: what the update keeps, in its order.
        gradient: like the parameter.
        rates: [G] float32, the learning rates of the parameter groups.
        group: which of them.
        count: [] int64, the number of this step, from 1.
        every: update at each multiple of this many steps.
        number: of the parameter; its random numbers follow from it.
    """

    parameter: fx.Node
    state: tuple[fx.Node, ...]
    gradient: fx.Node
    rates: fx.Node
    group: int
    count: fx.Node
    every: int
    number: int


@dataclass(frozen=True)
class Update:
    """How one parameter is updated.

    Attributes:
        extents: prefixes of the names of the state that is kept beside the parameter, in order, with the shape that
            each has for a parameter of a given shape. All of it starts from zero.
        emit: inserts the update; gives the new parameter and the new state.
        codes: those prefixes whose state is uint8; the others' is float32.
    """

    extents: Mapping[str, Callable[[list[int]], list[int]]]
    emit: Callable[[Emitter, Operands], list[fx.Node]]
    codes: frozenset[str] = frozenset()
