"""A training graph as text: what ``--dump-ir``, ``--print-after`` and golden tests show, and ``parse_graph`` reads."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch import fx

from fqt_deploy.core.graph import Stage, TrainingGraph
from fqt_deploy.core.text.arguments import shown_arguments
from fqt_deploy.core.text.literals import constant_text, type_text
from fqt_deploy.core.text.metadata import metadata_text
from fqt_deploy.core.text.scanner import quoted
from fqt_deploy.core.text.typed_fields import fields_text


@dataclass(frozen=True)
class GraphHeader:
    """The first line of a graph's text: what ``TrainingGraph`` says of the whole graph, under the same names."""

    stage: Stage
    batch: int
    selection: str | None = None
    selection_note: str = ""


def graph_text(graph: TrainingGraph) -> str:
    """The text of a graph, a line each for a layer, an input, a node and an output; docs/ir.md describes them.

    The text holds all that passes read of a graph. Of the state it has names, roles and types, not the values.
    """
    header = GraphHeader(graph.stage, graph.batch, graph.selection, graph.selection_note)
    lines = [f"graph {fields_text(header)}"]
    for record in graph.layers:
        lines.append(f"layer {quoted(record.path)} = {record.kind} {fields_text(record, but=('path', 'kind'))}")
    inputs = iter(graph.inputs)
    roles = {spec.name: spec.role for spec in graph.signature}
    for node in graph.graph.nodes:
        if node.op == "output":
            values = zip(graph.outputs, node.args[0], strict=True)
            lines += [f"output {quoted(name)} = {constant_text(value)}" for name, value in values]
            continue
        name = f"%{node.name} = "
        if node.op == "placeholder":
            path = next(inputs)
            role = graph.state[path].role if path in graph.state else roles.get(path, "input")
            line = f"{role} {name}{quoted(path)}"
        else:
            line = f"{name}{_call(node)}"
        lines.append(" ".join(filter(None, (line, ":", type_text(node.meta.get("val")), metadata_text(node)))))
    return "\n".join(lines) + "\n"


def _call(node: fx.Node) -> str:
    if node.target is operator.getitem:
        return f"{constant_text(node.args[0])}[{node.args[1]}]"
    shown = [
        constant_text(value) if name is None else f"{name}={constant_text(value)}"
        for name, value in shown_arguments(node)
    ]
    return f"{str(node.target).removesuffix('.default')}({', '.join(shown)})"
