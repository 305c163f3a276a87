"""Calls of ``fqt`` ops in ONNX: a node of domain ``ai.fqt``, and the model-local function behind it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from onnx import FunctionProto, NodeProto, helper, numpy_helper

from fqt_deploy.ops.lib.onnx_body import DOMAIN, OPSET, Attributes, Body, make_node
from fqt_deploy.ops.op import FqtOp


@dataclass(frozen=True)
class OpCall:
    """The operands and attributes that a node of domain ``ai.fqt`` takes.

    Attributes:
        operands: one for each input of the function: the given operand, or the neutral value of an absent one.
        attributes: of the node.
    """

    operands: tuple[Any, ...]
    attributes: Attributes


def op_call(call: FqtOp, values: FqtOp) -> OpCall:
    """The node of one call.

    Args:
        call: the call on whatever stands for its operands.
        values: the same call on real or fake tensors.

    Raises:
        ValueError: if ONNX Runtime could not compute the result exactly.
    """
    neutral, given = values.onnx_neutral(), {name: getattr(call, name) for name in call.operands()}
    operands = [neutral[name] if operand is None else operand for name, operand in given.items()]
    attributes = {name: _attribute_value(value) for name, value in values.onnx_attributes().items()}
    return OpCall(tuple(operands), attributes)


@cache
def op_function(op: type[FqtOp], attributes: tuple[str, ...]) -> FunctionProto:
    """The model-local function of ``op``, whose calls give ``attributes``; its inputs are the op's operands."""
    body, inputs = Body(), op.operands()
    results = op(*[name if name in inputs else None for name in op.fields()]).onnx_body(body)
    names = [results] if isinstance(results, str) else list(results)
    outputs = ["result"] if len(names) == 1 else [f"result_{i}" for i in range(len(names))]
    for value, output in zip(names, outputs, strict=True):
        body.nodes.append(make_node("Identity", [value], [output], output, {}))
    nodes = _with_hidden_paddings(body.nodes)
    return helper.make_function(
        DOMAIN, op.name, list(inputs), outputs, nodes, [helper.make_opsetid("", OPSET)], list(attributes),
        doc_string=inspect.getdoc(op),
    )  # fmt: skip


def _with_hidden_paddings(nodes: list[NodeProto]) -> list[NodeProto]:
    """The nodes with an ``Identity`` between a constant and the ``Pad`` that it tells how far to pad.

    ONNX Runtime before 1.25 takes the elements of such a constant for its shape when it infers the types of a function.
    """
    constants = {node.output[0] for node in nodes if node.op_type == "Constant"}
    found: list[NodeProto] = []
    for node in nodes:
        if node.op_type == "Pad" and node.input[1] in constants:
            hidden = f"{node.output[0]}_pads"
            found.append(make_node("Identity", [node.input[1]], [hidden], f"{node.name}_pads", {}))
            node.input[1] = hidden
        found.append(node)
    return found


def _attribute_value(value: Any) -> Any:
    """ONNX's own float attributes have single precision: too little for the decay of Adam's moments."""
    if isinstance(value, float):
        return numpy_helper.from_array(np.array(value, dtype=np.float64))
    return int(value) if isinstance(value, (bool, int)) else [int(item) for item in value]
