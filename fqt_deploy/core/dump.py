"""A training graph as text: what ``--dump-ir``, ``--print-after`` and golden tests show."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.graph import TrainingGraph

_DTYPES = {"float32": "f32", "float64": "f64", "int64": "i64", "int32": "i32", "int16": "i16", "int8": "i8",
           "uint8": "u8", "bool": "bool"}  # fmt: skip


def graph_text(graph: TrainingGraph) -> str:
    """One line a node, ``%name: type = op(operands)  # phase layer``, with named inputs and outputs."""
    lines = [f"stage {graph.stage.name.lower()}, batch {graph.batch}"]
    inputs = iter(graph.inputs)
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            lines.append(f"input  %{node.name}: {_type(node)} = {next(inputs)}")
        elif node.op == "output":
            values = zip(graph.outputs, node.args[0], strict=True)
            lines += [f"output {name} = {_operand(value)}" for name, value in values]
        else:
            where = " ".join(filter(None, (node.meta.get("phase", ""), node.meta.get("layer", ""))))
            lines.append(f"%{node.name}: {_type(node)} = {_call(node)}" + (f"  # {where}" if where else ""))
    return "\n".join(lines) + "\n"


def _call(node: fx.Node) -> str:
    if node.target is operator.getitem:
        return f"{_operand(node.args[0])}[{node.args[1]}]"
    operands = [_operand(a) for a in node.args]
    operands += [f"{name}={_operand(value)}" for name, value in node.kwargs.items()]
    return f"{str(node.target).removesuffix('.default')}({', '.join(operands)})"


def _operand(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_operand(item) for item in value) + "]"
    if isinstance(value, torch.dtype):
        return _dtype(value)
    return repr(value)


def _type(node: fx.Node) -> str:
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(_tensor_type(item) for item in value) + ")"
    return _tensor_type(value)


def _tensor_type(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return "?"
    return f"{_dtype(value.dtype)}[{', '.join(str(int(d)) for d in value.shape)}]"


def _dtype(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return _DTYPES.get(name, name)
