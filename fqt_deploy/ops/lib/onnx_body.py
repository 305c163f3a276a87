"""The body of an op in ONNX: a model-local function in standard ops, written once for all shapes and attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fqt_deploy.ops.lib.late_modules import onnx

DOMAIN = "ai.fqt"
"""Domain of the functions; their names are those of the ops."""
OPSET = 21
"""Version of the standard ops that bodies use."""

KERNELS = "ai.fqt.kernels"
"""Domain of the functions that are kernels of a step and call those of ``DOMAIN``; a plug-in replaces them."""
CHECK = "plugin_check"
"""The function of ``KERNELS`` by which a plug-in refuses a file that it was not made for."""

Attributes = dict[str, Any]
"""ONNX attributes of one call: integers, lists of integers, and floats, which become scalars of double precision."""


@dataclass(frozen=True)
class Reference:
    """An attribute of the function, as the attribute of a node in its body.

    Attributes:
        name: the name of the function's attribute.
        kind: its type.
    """

    name: str
    kind: onnx.AttributeProto.AttributeType


@dataclass(frozen=True)
class OnnxValue:
    """A value of an ONNX graph.

    Attributes:
        name: the name in ONNX.
        dtype: NumPy's name of the element type.
        shape: extents.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


class OnnxWriter(Protocol):
    """The writer of a graph's nodes."""

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node of one output and return that."""

    def constant(self, value: Any, dtype: str) -> str:
        """A constant; equal ones are stored once."""

    def cast(self, operand: OnnxValue, dtype: str) -> str:
        """The operand converted to ``dtype``."""


class Body:
    """Nodes in the making; a value is its name.

    Attributes:
        nodes: so far, in order.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, str, tuple[int, ...]], str] = {}

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node of one output and return that."""
        return self.several(op, *inputs, outputs=1, **attributes)[0]

    def several(self, op: str, *inputs: str, outputs: int, **attributes: Any) -> tuple[str, ...]:
        """Append a node of several outputs and return them."""
        number = len(self.nodes)
        names = [f"v{number}" if outputs == 1 else f"v{number}_{i}" for i in range(outputs)]
        self.nodes.append(make_node(op, inputs, names, f"{op}_{number}", attributes))
        return tuple(names)

    def constant(self, value: Any, dtype: str) -> str:
        """A constant of any shape; equal ones are made once."""
        array = np.asarray(value, dtype=dtype)
        key = (array.tobytes().hex(), dtype, array.shape)
        if key not in self._constants:
            self._constants[key] = self("Constant", value=onnx.numpy_helper.from_array(array))
        return self._constants[key]

    def integer(self, name: str) -> str:
        """The function's attribute ``name``, an integer, as [] int64."""
        return self("Constant", value_int=Reference(name, onnx.AttributeProto.INT))

    def integers(self, name: str) -> str:
        """The function's attribute ``name``, a list of integers, as [n] int64."""
        return self("Constant", value_ints=ints(name))

    def double(self, name: str) -> str:
        """The function's attribute ``name``, a float, as [] float64."""
        return self("Constant", value=Reference(name, onnx.AttributeProto.TENSOR))

    def float(self, name: str) -> str:
        """The function's attribute ``name``, a float, as [] float32."""
        return self.cast(self.double(name), "float32")

    def cast(self, x: str, dtype: str) -> str:
        """The value ``x`` converted to ``dtype``; integers keep their low bits."""
        return self("Cast", x, to=element_type(dtype))

    def extent(self, x: str, axis: int) -> str:
        """Extent of one axis, [1] int64."""
        end = {} if axis == -1 else {"end": axis + 1}
        return self("Shape", x, start=axis, **end)

    def shape(self, *parts: str | int) -> str:
        """A shape from integers and [n] int64 values."""
        values = [part if isinstance(part, str) else self.constant([part], "int64") for part in parts]
        return self("Concat", *values, axis=0)

    def reshape(self, x: str, *parts: str | int) -> str:
        """The value ``x`` in another shape; 0 keeps an extent, -1 stands for the rest."""
        if all(isinstance(part, int) for part in parts):
            return self("Reshape", x, self.constant(parts, "int64"))
        return self("Reshape", x, self.shape(*parts))

    def range(self, count: str) -> str:
        """The numbers 0, 1, ... below ``count`` ([] or [1] int64), as int64."""
        scalar = self("Reshape", count, self.constant([], "int64"))
        return self("Range", self.constant(0, "int64"), scalar, self.constant(1, "int64"))

    def front(self, x: str, count: str, axis: int) -> str:
        """The first ``count`` ([1] int64) elements of ``x`` along ``axis``."""
        return self("Slice", x, self.constant([0], "int64"), count, self.constant([axis], "int64"))

    def back(self, x: str, start: str, axis: int) -> str:
        """The elements along ``axis`` from ``start`` ([1] int64) on."""
        end = self.constant([np.iinfo(np.int64).max], "int64")
        return self("Slice", x, start, end, self.constant([axis], "int64"))

    def sum(self, x: str, *axes: int, keepdims: int = 0) -> str:
        """The sum of ``x`` over ``axes``."""
        return self("ReduceSum", x, self.constant(axes, "int64"), keepdims=keepdims)

    def unsqueeze(self, x: str, *axes: int) -> str:
        """The value ``x`` with new axes of one element at ``axes``."""
        return self("Unsqueeze", x, self.constant(axes, "int64"))

    def channels_first(self, x: str) -> str:
        """The images ``x`` turned from NHWC to NCHW."""
        return self("Transpose", x, perm=[0, 3, 1, 2])

    def channels_last(self, x: str) -> str:
        """The images ``x`` turned from NCHW to NHWC."""
        return self("Transpose", x, perm=[0, 2, 3, 1])


def ints(name: str) -> Reference:
    """The function's attribute ``name``, a list of integers."""
    return Reference(name, onnx.AttributeProto.INTS)


def integer(name: str) -> Reference:
    """The function's attribute ``name``, an integer."""
    return Reference(name, onnx.AttributeProto.INT)


def make_node(
    op: str, inputs: Sequence[str], outputs: Sequence[str], name: str, attributes: Attributes, domain: str = ""
) -> onnx.NodeProto:
    """A node; an attribute that is a ``Reference`` refers to one of the function around it."""
    plain = {key: value for key, value in attributes.items() if not isinstance(value, Reference)}
    node = onnx.helper.make_node(op, list(inputs), list(outputs), name=name, domain=domain, **plain)
    for key, value in attributes.items():
        if isinstance(value, Reference):
            node.attribute.add(name=key, ref_attr_name=value.name, type=value.kind)
    return node


def element_type(dtype: str) -> int:
    """ONNX's number of a NumPy dtype."""
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
