"""Export of a lowered graph as an ONNX model: a whole training step with state in and state out, or the prediction."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, ModelProto, helper, numpy_helper
from torch import fx

from fqt_deploy import __version__
from fqt_deploy.core.call import call_of
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import Stage, TrainingGraph
from fqt_deploy.core.onnx_names import NEXT
from fqt_deploy.export.graph_writer import GraphWriter, label_of, operand_of, value_info
from fqt_deploy.export.op_functions import op_call, op_function
from fqt_deploy.ops.aten.aten_op import AtenOp
from fqt_deploy.ops.lib.onnx_body import DOMAIN, OPSET, OnnxValue
from fqt_deploy.ops.op import FqtOp, op_of

IR_VERSION = 10
"""Version of the file format: the first with metadata on nodes; ONNX Runtime reads it since 1.18."""

Initial = Mapping[str, NDArray[Any]]


def to_onnx(graph: TrainingGraph, name: str, initial: Initial, *, training: bool) -> ModelProto:
    """Write ``graph`` as an ONNX model.

    Args:
        graph: the graph, in stage LOWERED.
        name: the name of the model.
        initial: values of all inputs but those of a batch, by name.
        training: keep these inputs, with their values as defaults; otherwise they become constants.

    Raises:
        FqtError: FQT203 for an op that ONNX Runtime could not compute exactly.
    """
    assert graph.stage is Stage.LOWERED, graph.stage
    writer, functions, values = GraphWriter(), {}, {}  # type: ignore[var-annotated]
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    operands = [operand_of(label, n.meta["val"]) for label, n in zip(graph.inputs, placeholders, strict=True)]
    values |= dict(zip(placeholders, operands, strict=True))
    names = _output_names(graph)
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem:
            writer.begin(node)
            _write(writer, functions, node, values, names)
    outputs = [_output(writer, graph, label, node, values) for label, node in _outputs(graph)]
    stored = [numpy_helper.from_array(np.asarray(initial[label]), label) for label in graph.inputs if label in initial]
    inputs = [o for o in operands if training or o.name not in initial]
    return helper.make_model(
        helper.make_graph(
            writer.nodes,
            "train_step" if training else "predict",
            [value_info(operand) for operand in inputs],
            [value_info(operand) for operand in outputs],
            initializer=[*stored, *writer.constants.values()],
            value_info=[info for info in writer.types if info.name not in {o.name for o in outputs}],
            doc_string=f"{name}: {'one training step' if training else 'prediction'} for {graph.batch} samples",
        ),
        functions=list(functions.values()),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        ir_version=IR_VERSION,
        producer_name="fqt-deploy",
        producer_version=__version__,
    )


def _outputs(graph: TrainingGraph) -> list[tuple[str, fx.Node]]:
    return list(graph.results().items())


def _output_name(graph: TrainingGraph, label: str) -> str:
    return label + NEXT if label in graph.inputs else label


def _output_names(graph: TrainingGraph) -> dict[fx.Node, str]:
    """Values that are computed as an output carry its name."""
    names: dict[fx.Node, str] = {}
    for label, node in _outputs(graph):
        names.setdefault(node, _output_name(graph, label))
    return names


def _output(
    writer: GraphWriter, graph: TrainingGraph, label: str, node: fx.Node, values: dict[fx.Node, OnnxValue]
) -> OnnxValue:
    """The operand of one output; a value that has another name already is copied."""
    name, operand = _output_name(graph, label), values[node]
    if operand.name != name:
        writer.begin(node)
        writer.node("Identity", [operand.name], [name], {})
    return OnnxValue(name, operand.dtype, operand.shape)


def _write(
    writer: GraphWriter,
    functions: dict[str, FunctionProto],
    node: fx.Node,
    values: dict[fx.Node, OnnxValue],
    names: dict[fx.Node, str],
) -> None:
    """Write one call and note the operands of its results."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)  # type: ignore[arg-type]
    result: Any = node.meta["val"]
    op = op_of(node)
    assert op is not None, node.target
    call = op.bound(args, kwargs)
    if isinstance(call, AtenOp):
        value = call.onnx(writer, result)
        values[node] = writer.name_result(value, names.get(node, label_of(node)), result)
    elif isinstance(call, FqtOp):
        _write_function(writer, functions, call, node, values, names)


def _write_function(
    writer: GraphWriter,
    functions: dict[str, FunctionProto],
    call: FqtOp,
    node: fx.Node,
    values: dict[fx.Node, OnnxValue],
    names: dict[fx.Node, str],
) -> None:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda a: a.meta["val"])
    op = type(call)
    try:
        written = op_call(call, op.bound(args, kwargs))
    except ValueError as error:
        raise FqtError(f"{op.name} cannot be exported to ONNX: {error}", code="FQT203", node=node) from None
    functions.setdefault(op.name, op_function(op, tuple(written.attributes)))
    inputs = [_named(writer, operand) for operand in written.operands]
    results = node.meta["val"]
    if not isinstance(results, (tuple, list)):
        name = names.get(node, label_of(node))
        writer.node(op.name, inputs, [name], written.attributes, DOMAIN)
        values[node] = writer.typed(name, results)
        return
    users: dict[int, fx.Node] = {}
    for user in node.users:
        users.setdefault(call_of(user).index, user)
    outputs = [
        names.get(users[i], f"{label_of(node)}:{i}") if i in users else f"{label_of(node)}:{i}"
        for i in range(len(results))
    ]
    writer.node(op.name, inputs, outputs, written.attributes, DOMAIN)
    operands = [writer.typed(name, result) for name, result in zip(outputs, results, strict=True)]
    for user in node.users:
        values[user] = operands[call_of(user).index]


def _named(writer: GraphWriter, operand: Any) -> str:
    """An operand's name; the neutral value of an absent one becomes a constant."""
    if isinstance(operand, OnnxValue):
        return operand.name
    array = operand.numpy()
    return writer.constant(array, array.dtype.name)
