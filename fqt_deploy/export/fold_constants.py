"""What an ONNX prediction computes of its weights alone, computed once: 1-bit weights are packed bits in the file."""

from __future__ import annotations

import math

import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper


def with_folded_constants(model: ModelProto) -> ModelProto:
    """``model`` with the results of all nodes that read constants alone in their place.

    A result that is larger than the constants it is computed from stays a node, as of a broadcast.
    """
    folded = _foldable(model)
    if not folded:
        return model
    kept = [node for node in model.graph.node if node.name not in folded]
    read = {name for node in kept for name in node.input} | {output.name for output in model.graph.output}
    wanted = [name for node in folded.values() for name in node.output if name in read]
    values = _values(model, list(folded.values()), wanted)
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(kept)
    stored = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del result.graph.initializer[:]
    result.graph.initializer.extend([*stored, *values])
    gone = {name for node in folded.values() for name in node.output}
    infos = [info for info in model.graph.value_info if info.name not in gone]
    del result.graph.value_info[:]
    result.graph.value_info.extend(infos)
    called = {node.op_type for node in kept if node.domain}
    functions = [function for function in model.functions if function.name in called]
    del result.functions[:]
    result.functions.extend(functions)
    return result


def _foldable(model: ModelProto) -> dict[str, NodeProto]:
    """The nodes that read constants alone, and are computed from no fewer elements than they have, by name."""
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    declared = {info.name: _elements(info) for info in model.graph.value_info}
    found: dict[str, NodeProto] = {}
    for node in model.graph.node:
        if not node.input or not all(name in sizes for name in node.input):
            continue
        largest = max(sizes[name] for name in node.input)
        results = [declared.get(name, largest) for name in node.output]  # those within an operator are not declared
        if max(results) <= largest:
            found[node.name] = node
            sizes |= dict(zip(node.output, results, strict=True))
    return found


def _values(model: ModelProto, nodes: list[NodeProto], wanted: list[str]) -> list[TensorProto]:
    """The values ``wanted`` as tensors, computed by ONNX Runtime from the constants of ``model``."""
    graph = helper.make_graph(
        nodes, "constants", [], [helper.make_empty_tensor_value_info(name) for name in wanted],
        initializer=model.graph.initializer,
    )  # fmt: skip
    alone = helper.make_model(
        graph, functions=list(model.functions), opset_imports=list(model.opset_import), ir_version=model.ir_version
    )
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(alone.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return [numpy_helper.from_array(value, name) for name, value in zip(wanted, session.run(wanted, {}), strict=True)]


def _elements(info: ValueInfoProto) -> int:
    return math.prod(dim.dim_value for dim in info.type.tensor_type.shape.dim)
