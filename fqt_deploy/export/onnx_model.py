"""Export of a lowered graph as an ONNX model: a whole training step with state in and state out, or the prediction."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, ModelProto, helper, numpy_helper
from torch import fx

from fqt_deploy import __version__
from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import Stage, TrainingGraph
from fqt_deploy.core.onnx_names import NEXT
from fqt_deploy.export.call_writer import CallWriter
from fqt_deploy.export.graph_writer import GraphWriter, label_of, operand_of, value_info
from fqt_deploy.export.kernel_calls import KernelCalls
from fqt_deploy.export.kernel_functions import KernelWriter
from fqt_deploy.ops.lib.onnx_body import DOMAIN, KERNELS, OPSET, OnnxValue

IR_VERSION = 10
"""Version of the file format: the first with metadata on nodes; ONNX Runtime reads it since 1.18."""

Initial = Mapping[str, NDArray[Any]]


def to_onnx(graph: TrainingGraph, name: str, initial: Initial, *, training: bool) -> ModelProto:
    """Write ``graph`` as an ONNX model, one call after the other.

    Args:
        graph: the graph, in stage LOWERED.
        name: the name of the model.
        initial: values of all inputs but those of a batch, by name.
        training: keep these inputs, with their values as defaults; otherwise they become constants.

    Raises:
        FqtError: FQT203 for an op that ONNX Runtime could not compute exactly.
    """
    assert graph.stage is Stage.LOWERED, graph.stage
    writer = CallWriter(GraphWriter(), {})
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    operands = [operand_of(label, n.meta["val"]) for label, n in zip(graph.inputs, placeholders, strict=True)]
    writer.values |= dict(zip(placeholders, operands, strict=True))
    names = _output_names(graph)
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem:
            writer.writer.begin(node)
            writer.write(node, _result_names(node, names))
    outputs = [_output(writer.writer, graph, label, node, writer.values[node]) for label, node in _outputs(graph)]
    return _model(graph, name, initial, writer.writer, writer.functions.values(), outputs, training=training)


def to_onnx_kernels(
    graph: TrainingGraph, name: str, initial: Initial, kernels: KernelCalls, *, training: bool
) -> ModelProto:
    """Write ``graph`` as an ONNX model, one call for each of its kernels.

    Args:
        graph: as for ``to_onnx``.
        name: as for ``to_onnx``.
        initial: as for ``to_onnx``.
        kernels: the kernels of ``graph``.
        training: as for ``to_onnx``.

    Raises:
        FqtError: as ``to_onnx``.
    """
    assert graph.stage is Stage.LOWERED, graph.stage
    writer = KernelWriter(GraphWriter())
    writer.check(kernels)
    for call in kernels.calls:
        writer.write(call)
    outputs = [_output(writer.writer, graph, label, node, kernels.value(node)) for label, node in _outputs(graph)]
    return _model(graph, name, initial, writer.writer, writer.functions(), outputs, training=training)


def _model(
    graph: TrainingGraph,
    name: str,
    initial: Initial,
    writer: GraphWriter,
    functions: Iterable[FunctionProto],
    outputs: Sequence[OnnxValue],
    *,
    training: bool,
) -> ModelProto:
    """The model of what was written."""
    functions = list(functions)
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    operands = [operand_of(label, n.meta["val"]) for label, n in zip(graph.inputs, placeholders, strict=True)]
    stored = [numpy_helper.from_array(np.asarray(initial[label]), label) for label in graph.inputs if label in initial]
    domains = [DOMAIN, *(KERNELS for _ in range(any(f.domain == KERNELS for f in functions)))]
    return helper.make_model(
        helper.make_graph(
            writer.nodes,
            "train_step" if training else "predict",
            [value_info(operand) for operand in operands if training or operand.name not in initial],
            [value_info(operand) for operand in outputs],
            initializer=[*stored, *writer.constants.values()],
            value_info=[info for info in writer.types if info.name not in {o.name for o in outputs}],
            doc_string=f"{name}: {'one training step' if training else 'prediction'} for {graph.batch} samples",
        ),
        functions=functions,
        opset_imports=[helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in domains)],
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


def _result_names(node: fx.Node, names: Mapping[fx.Node, str]) -> list[str]:
    """Names of the results of one call: those of outputs, or else of the call."""
    results = node.meta["val"]
    if not isinstance(results, (tuple, list)):
        return [names.get(node, label_of(node))]
    users: dict[int, fx.Node] = {}
    for user in node.users:
        users.setdefault(call_of(user).index, user)
    own = [f"{label_of(node)}:{i}" for i in range(len(results))]
    return [names.get(users[i], own[i]) if i in users else own[i] for i in range(len(results))]


def _output(writer: GraphWriter, graph: TrainingGraph, label: str, node: fx.Node, value: OnnxValue) -> OnnxValue:
    """The operand of one output; a value that has another name, or another shape, already is copied."""
    wanted = operand_of(_output_name(graph, label), node.meta["val"])
    if value != wanted:
        writer.begin(node)
        if value.shape != wanted.shape:
            writer.node("Reshape", [value.name, writer.constant(wanted.shape, "int64")], [wanted.name], {})
        else:
            writer.node("Identity", [value.name], [wanted.name], {})
    return wanted
