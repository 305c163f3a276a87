"""Bodies of model-local functions in place of their calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from onnx import FunctionProto, NodeProto


def inlined_nodes(call: NodeProto, functions: Mapping[tuple[str, str], FunctionProto]) -> Iterator[NodeProto]:
    """The node itself, or in place of a call the body of its function.

    A node of a body is named ``CALL/NAME``, so that it still tells layer and phase, and has the metadata of its call.
    Values within a body are named in the same way; the function's results keep the names that the call gives them.
    """
    function = functions.get((call.domain, call.op_type))
    if function is None:
        yield call
    else:
        yield from _body(call, function)


def _body(call: NodeProto, function: FunctionProto) -> Iterator[NodeProto]:
    """The nodes of ``function`` with the operands, results and attributes of ``call``."""
    names = dict(zip(function.input, call.input, strict=True))
    results = dict(zip(function.output, call.output, strict=True))
    copies: dict[str, str] = {}
    # A body ends in one Identity for each result. What it copies is given the result's name at once.
    for node in function.node:
        if node.op_type == "Identity" and node.output[0] in results and node.input[0] not in (*names, *copies):
            copies[node.input[0]] = node.output[0]
    names |= {value: results[result] for value, result in copies.items()}
    attributes = {attribute.name: attribute for attribute in call.attribute}
    for node in function.node:
        if not (node.op_type == "Identity" and copies.get(node.input[0]) == node.output[0]):
            yield _renamed(node, call, {**names, **results}, attributes)


def _renamed(node: NodeProto, call: NodeProto, names: Mapping[str, str], attributes: Mapping[str, object]) -> NodeProto:
    """A node of a body as it stands in the graph around its call."""

    def outer(values: Iterable[str]) -> list[str]:
        return [names.get(value, f"{call.name}/{value}") if value else "" for value in values]

    new = NodeProto(op_type=node.op_type, domain=node.domain, name=f"{call.name}/{node.name}")
    new.input.extend(outer(node.input))
    new.output.extend(outer(node.output))
    new.metadata_props.extend(call.metadata_props)
    for attribute in node.attribute:
        added = new.attribute.add()
        if attribute.ref_attr_name:
            added.CopyFrom(attributes[attribute.ref_attr_name])
            added.name = attribute.name
        else:
            added.CopyFrom(attribute)
    return new
