"""Planes of packed weights: a level of several bits is a sum of signs, so each plane is a packed weight of signs.

A weight of signs alone lies in panels, three axes; one of several planes has an axis of them in front, lowest first.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any


def weight_planes(w_bits: Any) -> int:
    """How many planes a packed weight has: a tensor, an expression or a buffer."""
    return int(w_bits.shape[0]) if len(w_bits.shape) == 4 else 1


def largest_weight(w_bits: Any) -> int:
    """The largest level of a packed weight."""
    return (1 << weight_planes(w_bits)) - 1


def of_planes(w_bits: Any, term: Callable[[Callable[..., Any]], Any]) -> Any:
    """Loop nest: the sum over a packed weight's planes of what a word of each contributes.

    Args:
        w_bits: the packed weight, with an axis of planes or without.
        term: what a word contributes, by what reads a panel, a word and a lane of one plane.
    """
    if weight_planes(w_bits) == 1:
        return term(lambda *place: w_bits[place])
    planes = [term(lambda *place, p=p: w_bits[(p, *place)]) << p for p in range(weight_planes(w_bits))]
    return functools.reduce(operator.add, planes)
