"""Nodes of a static ONNX graph whose result is there already: an operand, or zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper


class StaticValues(Protocol):
    """What is known about the values of a graph."""

    constants: dict[str, NDArray[Any]]
    producers: dict[str, NodeProto]

    def shape(self, value: str) -> tuple[int, ...]:
        """The extents of ``value``."""

    def element_type(self, value: str) -> int:
        """ONNX's number of the element type of ``value``."""


def copied(node: NodeProto, values: StaticValues) -> str | None:
    """The value whose bits, shape and type the only result of ``node`` has; None if it computes something."""
    found = _chosen(node, values) or _cast_back(node, values)
    if found is None and node.op_type in _TESTS and _TESTS[node.op_type](node, values):
        found = node.input[0]
    if found is None or values.shape(found) != values.shape(node.output[0]):
        return None
    return found if values.element_type(found) == values.element_type(node.output[0]) else None


def are_zeros(node: NodeProto, values: StaticValues) -> bool:
    """Whether the result is zeros: remainders of integers divided by one."""
    if node.op_type != "Mod" or values.element_type(node.output[0]) not in _INTEGERS:
        return False
    return _by_one(node, values)


def _chosen(node: NodeProto, values: StaticValues) -> str | None:
    """The operand that a ``Where`` takes everywhere."""
    condition = values.constants.get(node.input[0]) if node.op_type == "Where" else None
    if condition is None or condition.min() != condition.max():
        return None
    return str(node.input[1] if condition.all() else node.input[2])


def _cast_back(node: NodeProto, values: StaticValues) -> str | None:
    """What was cast to a type that has all of its values, and is cast back."""
    before = values.producers.get(node.input[0]) if node.op_type == "Cast" else None
    if before is None or before.op_type != "Cast":
        return None
    source, middle = (values.element_type(value) for value in (before.input[0], before.output[0]))
    return str(before.input[0]) if middle in _WIDER.get(source, ()) else None


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


def _takes_all(node: NodeProto, values: StaticValues) -> bool:
    """A gathering of all places, in order."""
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    places = values.constants.get(node.input[1])
    return places is not None and np.array_equal(places, np.arange(values.shape(node.input[0])[axis]))


def _by_one(node: NodeProto, values: StaticValues) -> bool:
    """A product with, or quotient by, ones."""
    factor = values.constants.get(node.input[1])
    return factor is not None and bool((factor == 1).all())


_INTEGERS = {TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.UINT32}
_WIDER: Mapping[int, set[int]] = {
    int(kind): {int(helper.np_dtype_to_tensor_dtype(np.dtype(wider))) for wider in ("float32", "int32", "int64")}
    for kind in (TensorProto.BOOL, TensorProto.UINT8, TensorProto.INT8)
}
"""By element type, those that have all of its values."""

_TESTS: Mapping[str, Callable[[NodeProto, StaticValues], bool]] = {
    "Cast": _always,
    "Concat": lambda node, _: len(node.input) == 1,
    "Div": _by_one,
    "Expand": _always,
    "Gather": _takes_all,
    "Mul": _by_one,
    "Pad": _pads_nothing,
    "Reshape": _always,
    "Slice": _is_all,
    "Transpose": _keeps_order,
}
"""By op, the question that remains where shape and type are the same."""
