"""Nodes of one ONNX graph, named after the layers of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import fx

from fqt_deploy.core.diagnostics import SourceLocation
from fqt_deploy.ops.lib.dtypes import dtype_name
from fqt_deploy.ops.lib.onnx_body import Attributes, OnnxValue, element_type, make_node


@dataclass
class GraphWriter:
    """Collects nodes, constants and types; writes the nodes of one fx node at a time.

    Attributes:
        nodes: the nodes in order.
        constants: tensors that no input can replace, by name.
        types: shape and dtype of what the fx nodes compute.
    """

    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    types: list[ValueInfoProto] = field(default_factory=list)
    _label: str = ""
    _first: int = 0
    _metadata: dict[str, str] = field(default_factory=dict)
    _known: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)

    def begin(self, node: fx.Node) -> None:
        """Begin the nodes that belong to ``node``."""
        location = SourceLocation.of(node)
        known = {key: str(node.meta.get(key) or "") for key in ("layer", "phase")}
        self.begin_unnamed(label_of(node))
        self._metadata = {**known, "source": location.portable if location else ""}

    def begin_unnamed(self, label: str) -> None:
        """Begin nodes that are called ``label`` and belong to no layer, as in a function."""
        self._label, self._first, self._metadata = label, len(self.nodes), {}

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node of one output and return that."""
        return self.node(op, inputs, [self._fresh()], attributes)[0]

    def node(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Attributes, domain: str = ""
    ) -> Sequence[str]:
        """Append a node and return its outputs."""
        name = self._label if len(self.nodes) == self._first else f"{self._label}.{len(self.nodes) - self._first}"
        node = make_node(op, inputs, outputs, name, attributes, domain)
        for key, value in self._metadata.items():
            if value:
                node.metadata_props.add(key=key, value=value)
        self.nodes.append(node)
        return outputs

    def name_result(self, value: str, name: str, result: torch.Tensor) -> OnnxValue:
        """Call ``value``, written last, ``name``; an older value gets a second name."""
        last = self.nodes[-1] if len(self.nodes) > self._first else None
        if last is not None and last.output[0] == value:
            last.output[0] = name
        else:
            self.node("Identity", [value], [name], {})
        return self.typed(name, result)

    def typed(self, name: str, result: torch.Tensor) -> OnnxValue:
        """Note shape and dtype of the value ``name``."""
        operand = operand_of(name, result)
        self.declare(operand)
        return operand

    def declare(self, value: OnnxValue) -> None:
        """Note shape and dtype of ``value``."""
        self.types.append(value_info(value))

    def constant(self, value: Any, dtype: str) -> str:
        """A constant; equal ones are stored once."""
        array = np.asarray(value, dtype=dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._known:
            name = f"constant/{dtype}/{len(self._known)}"
            self._known[key] = name
            self.constants[name] = numpy_helper.from_array(array, name)
        return self._known[key]

    def cast(self, operand: OnnxValue, dtype: str) -> str:
        """The name of ``operand`` converted to ``dtype``."""
        return operand.name if operand.dtype == dtype else self("Cast", operand.name, to=element_type(dtype))

    def _fresh(self) -> str:
        return f"{self._label}.{len(self.nodes) - self._first}:"


def label_of(node: fx.Node) -> str:
    """Layer, phase and name of a node: unique, and readable in a viewer."""
    return "/".join(filter(None, (node.meta.get("layer"), node.meta.get("phase", "forward"), node.name)))


def operand_of(name: str, tensor: torch.Tensor) -> OnnxValue:
    """The operand of the shape and type of ``tensor``, which may be fake."""
    return OnnxValue(name, dtype_name(tensor.dtype), tuple(int(d) for d in tensor.shape))


def value_info(operand: OnnxValue) -> ValueInfoProto:
    """The name, type and shape of a value, as ONNX declares it."""
    return helper.make_tensor_value_info(operand.name, element_type(operand.dtype), operand.shape)
