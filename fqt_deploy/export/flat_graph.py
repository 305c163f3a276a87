"""A graph of standard ONNX ops that is folded and simplified while it is written: all of its shapes are static."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, TypeProto, ValueInfoProto, defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from fqt_deploy.core.diagnostics import InvariantError
from fqt_deploy.export.bits_of_words import unpacked
from fqt_deploy.export.codes_of_planes import recombined
from fqt_deploy.export.no_effect import are_zeros, copied
from fqt_deploy.ops.lib.onnx_body import OPSET

Array = NDArray[Any]

LARGEST_FOLDED = 2**16
"""The most elements of a value that is folded into a constant: larger ones would make the file larger than they make it
faster."""

_RESHAPES = {"Reshape", "Unsqueeze", "Squeeze", "Flatten"}
"""Ops that change the shape alone; in a row they are one."""
_SHORTCUTS = {"Gather": unpacked, "ReduceSum": recombined}
"""By op: what may find the value of a node in bits and codes that are there."""
_ROUNDED_ALIKE = {
    "Abs", "Add", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Expand", "Gather", "Identity", "Max", "Min",
    "Mul", "Neg", "Pad", "Pow", "Reshape", "Slice", "Sqrt", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
"""Ops whose floating point results are the same everywhere; ``Pow`` has powers of two only."""


@dataclass
class FlatGraph:
    """Collects nodes; what is known when a node is added becomes a constant, and what is there already is used again.

    Attributes:
        types: type and shape of each value.
        constants: values that are known, by name.
        nodes: what is left to compute, in order.
        producers: the node that computes each value.
        bits: the bits of packed words, by the name of the words; None where they are not known.
    """

    types: dict[str, TypeProto]
    constants: dict[str, Array] = field(default_factory=dict)
    nodes: list[NodeProto] = field(default_factory=list)
    producers: dict[str, NodeProto] = field(default_factory=dict)
    bits: dict[str, str | None] = field(default_factory=dict)
    _same: dict[str, str] = field(default_factory=dict)
    _computed: dict[tuple[Any, ...], Sequence[str]] = field(default_factory=dict)
    _reshaped: dict[str, str] = field(default_factory=dict)
    _known: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)

    def name(self, value: str) -> str:
        """The name under which ``value`` is computed."""
        return self._same.get(value, value)

    def derive(self, source: NodeProto, op: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node on behalf of ``source`` and return its result."""
        name = f"{source.name}/{op}_{len(self._same)}_{len(self.nodes)}"
        node = helper.make_node(op, [self.name(value) for value in inputs], [name], name=name, **attributes)
        node.metadata_props.extend(source.metadata_props)
        self.add(node)
        return self.name(name)

    def know(self, value: str, array: Array) -> None:
        """Let ``value`` be a constant."""
        self._same[value] = self.constant(array)

    def rename(self, value: str, same: str) -> None:
        """Let ``value`` be what is computed as ``same``."""
        self._same[value] = self.name(same)

    def add(self, node: NodeProto) -> None:
        """Add a node; its operands have been added."""
        operands = [self.name(value) for value in node.input]
        node = _with_inputs(node, operands)
        if node.op_type == "Identity":
            self._same[node.output[0]] = operands[0]
        elif node.op_type == "Shape":
            self.know(node.output[0], _shape_value(node, self.shape(operands[0])))
        elif node.op_type == "Size":
            self.know(node.output[0], np.array(math.prod(self.shape(operands[0])), dtype=np.int64))
        elif not self._fold(node):
            self._compute(node)

    def shape(self, value: str) -> tuple[int, ...]:
        """The extents of ``value``."""
        dims = self.types[value].tensor_type.shape.dim
        if not all(dim.HasField("dim_value") for dim in dims):
            raise InvariantError(f"the shape of {value} is not known when exporting")
        return tuple(int(dim.dim_value) for dim in dims)

    def element_type(self, value: str) -> int:
        """ONNX's number of the element type of ``value``."""
        return int(self.types[value].tensor_type.elem_type)

    def constant(self, array: Array) -> str:
        """The name of a constant; equal ones are stored once."""
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._known:
            name = self._known[key] = f"constant/{array.dtype.name}/{len(self._known)}"
            self.constants[name], self.types[name] = array, _type_of(array)
        return self._known[key]

    def finish(self, outputs: Iterable[str]) -> None:
        """Copy outputs that another value has the name of, and drop what no output needs."""
        for name in outputs:
            if (source := self.name(name)) != name:
                self.types[name] = self.types[source]
                self.nodes.append(helper.make_node("Identity", [source], [name], name=name))
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                needed |= set(node.input)
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {name: array for name, array in self.constants.items() if name in needed}

    def value_infos(self) -> list[ValueInfoProto]:
        """Types of all values that nodes compute."""
        names = [value for node in self.nodes for value in node.output if value]
        return [helper.make_value_info(name, self.types[name]) for name in names]

    def initializers(self) -> list[TensorProto]:
        """The constants as ONNX stores them."""
        return [numpy_helper.from_array(array, name) for name, array in self.constants.items()]

    def _fold(self, node: NodeProto) -> bool:
        """Whether the node's results are known now."""
        if any(value and value not in self.constants for value in node.input):
            return False
        types = self._inferred(node)
        sizes = [math.prod(dim.dim_value for dim in t.tensor_type.shape.dim) for t in types.values()]
        floating = any(t.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.DOUBLE) for t in types.values())
        if max(sizes, default=0) > LARGEST_FOLDED or (floating and node.op_type not in _ROUNDED_ALIKE):
            return False
        function = helper.make_function(
            "fold", "fold", list(dict.fromkeys(filter(None, node.input))), list(node.output), [node],
            [helper.make_opsetid("", OPSET)],
        )  # fmt: skip
        results = ReferenceEvaluator(function).run(None, {name: self.constants[name] for name in function.input}, {})
        for name, result in zip(node.output, results, strict=True):
            wanted = helper.tensor_dtype_to_np_dtype(types[name].tensor_type.elem_type)
            self.know(name, np.array(result, dtype=wanted, order="C"))
        return True

    def _compute(self, node: NodeProto) -> None:
        if node.op_type in _RESHAPES:
            node = self._as_reshape(node)
        elif node.op_type == "Transpose":
            node = self._as_one_transposition(node)
        key = (node.op_type, len(node.output), *node.input, *sorted(a.SerializeToString() for a in node.attribute))
        if (found := self._computed.get(key)) is not None:
            self._same.update(zip(node.output, found, strict=True))
            return
        shortcut = _SHORTCUTS.get(node.op_type)
        if shortcut is not None and (known := shortcut(node, self)) is not None:
            self._same[node.output[0]] = known
            return
        self.types.update(self._inferred(node))
        shapes = [self.shape(value) for value in node.output]  # fails where one is not static
        if (copy := copied(node, self)) is not None:
            self._same[node.output[0]] = copy
            return
        if are_zeros(node, self) and math.prod(shapes[0]) <= LARGEST_FOLDED:
            dtype = helper.tensor_dtype_to_np_dtype(self.element_type(node.output[0]))
            self.know(node.output[0], np.zeros(shapes[0], dtype=dtype))
            return
        self._computed[key] = list(node.output)
        if node.op_type == "Reshape":
            self._reshaped[node.output[0]] = node.input[0]
        self.producers.update(dict.fromkeys(node.output, node))
        self.nodes.append(node)

    def _as_one_transposition(self, node: NodeProto) -> NodeProto:
        """The op together with the transposition that computes its operand, if one does."""
        before = self.producers.get(node.input[0])
        if before is None or before.op_type != "Transpose":
            return node
        first, second = (self._order(each) for each in (before, node))
        new = helper.make_node("Transpose", [before.input[0]], list(node.output), name=node.name)
        new.attribute.append(helper.make_attribute("perm", [first[axis] for axis in second]))
        new.metadata_props.extend(node.metadata_props)
        return new

    def _order(self, node: NodeProto) -> list[int]:
        given = [list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"]
        return given[0] if given else list(range(len(self.shape(node.input[0]))))[::-1]

    def _as_reshape(self, node: NodeProto) -> NodeProto:
        """The op as one ``Reshape`` of what the reshapes before it began with."""
        types = self._inferred(node)
        shape = [dim.dim_value for dim in types[node.output[0]].tensor_type.shape.dim]
        if 0 in shape:  # in a Reshape it would stand for an extent of the operand
            return node
        target = self.constant(np.array(shape, dtype=np.int64))
        begin = self._reshaped.get(node.input[0], node.input[0])
        new = helper.make_node("Reshape", [begin, target], list(node.output), name=node.name)
        new.metadata_props.extend(node.metadata_props)
        return new

    def _inferred(self, node: NodeProto) -> dict[str, TypeProto]:
        """Types of the node's results."""
        given = dict.fromkeys(filter(None, node.input))
        known = {
            name: numpy_helper.from_array(self.constants[name], name)
            for name in given
            if name in self.constants and self.constants[name].size <= LARGEST_FOLDED
        }
        inferred: dict[str, TypeProto] = shape_inference.infer_node_outputs(
            defs.get_schema(node.op_type, OPSET, node.domain),
            node,
            {name: self.types[name] for name in given},
            known,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )
        return inferred


def _type_of(array: Array) -> TypeProto:
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _with_inputs(node: NodeProto, inputs: Sequence[str]) -> NodeProto:
    new = NodeProto()
    new.CopyFrom(node)
    del new.input[:]
    new.input.extend(inputs)
    return new


def _shape_value(node: NodeProto, shape: Sequence[int]) -> Array:
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    return np.array(shape[attributes.get("start", 0) : attributes.get("end", len(shape))], dtype=np.int64)
