"""Nodes of a static ONNX graph that only copy their operand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto


class StaticValues(Protocol):
    """What is known about the values of a graph."""

    constants: dict[str, NDArray[Any]]

    def shape(self, value: str) -> tuple[int, ...]:
        """The extents of ``value``."""

    def element_type(self, value: str) -> int:
        """ONNX's number of the element type of ``value``."""


def has_no_effect(node: NodeProto, values: StaticValues) -> bool:
    """Whether the only result of ``node`` has the bits of its first operand, in the same shape and type."""
    test = _TESTS.get(node.op_type)
    if test is None:
        return False
    operand, result = node.input[0], node.output[0]
    same = values.shape(operand) == values.shape(result) and values.element_type(operand) == values.element_type(result)
    return same and test(node, values)


def _always(_: NodeProto, __: StaticValues) -> bool:
    """An op whose result in the shape and type of its operand is that operand."""
    return True


def _keeps_order(node: NodeProto, values: StaticValues) -> bool:
    """A transposition that moves nothing but axes of one element."""
    shape = values.shape(node.input[0])
    order = next((list(a.ints) for a in node.attribute if a.name == "perm"), list(range(len(shape)))[::-1])
    moved = [axis for axis in order if shape[axis] != 1]
    return moved == sorted(moved)


def _is_all(node: NodeProto, values: StaticValues) -> bool:
    """A slice of everything, forwards."""
    steps = values.constants.get(node.input[4]) if len(node.input) > 4 else np.ones(1)
    return steps is not None and bool((steps > 0).all())


def _pads_nothing(node: NodeProto, values: StaticValues) -> bool:
    """A padding of no element: one that crops on one side and pads the other keeps the shape as well."""
    padding = values.constants.get(node.input[1])
    return padding is not None and not padding.any()


def _by_one(node: NodeProto, values: StaticValues) -> bool:
    """A product with, or quotient by, ones."""
    factor = values.constants.get(node.input[1])
    return factor is not None and bool((factor == 1).all())


_TESTS: Mapping[str, Callable[[NodeProto, StaticValues], bool]] = {
    "Cast": _always,
    "Concat": lambda node, _: len(node.input) == 1,
    "Div": _by_one,
    "Expand": _always,
    "Mul": _by_one,
    "Pad": _pads_nothing,
    "Reshape": _always,
    "Slice": _is_all,
    "Transpose": _keeps_order,
}
"""By op, the question that remains where shape and type are the same."""
