"""An exported model for every ONNX Runtime: standard ops alone, static shapes, no default of an input."""

from __future__ import annotations

from onnx import ModelProto, NodeProto, helper, numpy_helper

from fqt_deploy.export.flat_graph import FlatGraph
from fqt_deploy.export.inline_functions import inlined_nodes
from fqt_deploy.export.products_of_images import product
from fqt_deploy.ops.lib.onnx_body import OPSET


def flatten(model: ModelProto) -> ModelProto:
    """The same model without functions, without shape arithmetic, and without the defaults of its inputs.

    It computes the same numbers. JavaScript and Java know no input that has a default, and converters and other
    runtimes know no functions. Nodes and values are named after the calls that they come from.
    """
    graph = model.graph
    inputs = {value.name for value in graph.input}
    flat = FlatGraph({value.name: value.type for value in graph.input})
    for tensor in graph.initializer:
        if tensor.name not in inputs:
            flat.know(tensor.name, numpy_helper.to_array(tensor))
    functions = {(function.domain, function.name): function for function in model.functions}
    calls: dict[str, NodeProto] = {}
    for call in graph.node:
        if (value := product(call, calls, flat)) is not None:
            flat.rename(call.output[0], value)
            continue
        calls |= dict.fromkeys(call.output, call)
        for node in inlined_nodes(call, functions):
            flat.add(node)
    outputs = [value.name for value in graph.output]
    flat.finish(outputs)
    made = helper.make_model(
        helper.make_graph(
            flat.nodes,
            graph.name,
            list(graph.input),
            list(graph.output),
            initializer=flat.initializers(),
            value_info=[info for info in flat.value_infos() if info.name not in outputs],
            doc_string=graph.doc_string,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
    )
    made.metadata_props.extend(model.metadata_props)
    return made
