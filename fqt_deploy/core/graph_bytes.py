"""A captured graph as bytes, by which one process hands it to another of the same program.

Unlike its text (``core/text``) they hold all lines that led to a node, the names that erased nodes had, and the
signature; like it they have of the state the names alone.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.core.graph import StateTensor, TrainingGraph, meta_tensor

_META = ("val", "layer", "phase", "stack_trace", "seq_nr")
"""What a captured graph says of a node, see ``TrainingGraph``."""
_NAMESPACE = ("_used_names", "_base_count")
"""What fx names the next node by: the same passes then give the same names in both processes."""


def graph_bytes(graph: TrainingGraph) -> bytes:
    """The bytes of a graph as captured: no pass has run on it."""
    content = io.BytesIO()
    writer = _Writer(content)
    fields = (graph.inputs, graph.outputs, graph.batch, graph.signature, graph.notes, graph.labels, graph.prediction)
    writer.dump((fields, list(graph.state), len(graph.graph.nodes)))
    for node in graph.graph.nodes:
        meta = {key: node.meta[key] for key in _META if key in node.meta}
        writer.dump((node.op, node.target, node.args, node.kwargs, node.name, meta))
    writer.dump({name: getattr(graph.graph._graph_namespace, name) for name in _NAMESPACE})
    return content.getvalue()


def graph_of_bytes(content: bytes, state: Mapping[str, StateTensor]) -> TrainingGraph:
    """The graph that ``graph_bytes`` wrote, on tensors of ``state``; KeyError for one that is not there.

    Only for bytes of this program: they are a pickle.
    """
    reader = _Reader(io.BytesIO(content))
    fields, state_names, count = reader.load()
    module = fx.GraphModule(torch.nn.Module(), fx.Graph())
    for _ in range(count):
        op, target, args, kwargs, name, meta = reader.load()
        reader.nodes[name] = module.graph.create_node(op, target, args, kwargs, name=name)
        reader.nodes[name].meta.update(meta)
    for name, value in reader.load().items():
        setattr(module.graph._graph_namespace, name, value)
    module.recompile()
    inputs, outputs, batch, signature, notes, labels, prediction = fields
    return TrainingGraph(
        module, inputs, outputs, {name: state[name] for name in state_names}, batch, signature=signature, notes=notes,
        labels=labels, prediction=prediction,
    )  # fmt: skip


class _Writer(pickle.Pickler):
    """Writes nodes and operators as their names, and of a tensor its shape and dtype: it has no values."""

    def persistent_id(self, item: Any) -> Any:
        """What is written in the place of ``item``; None for itself."""
        if isinstance(item, fx.Node):
            return "node", item.name
        if isinstance(item, torch._ops.OpOverload):
            return "op", item.namespace, item._schema.name.partition("::")[2], item._overloadname
        if isinstance(item, Tensor):
            if not item.is_meta:
                raise pickle.PicklingError("a node holds a tensor with values")
            return "tensor", tuple(item.shape), item.dtype
        return None


class _Reader(pickle.Unpickler):
    """Reads what ``_Writer`` wrote."""

    def __init__(self, content: io.BytesIO) -> None:
        super().__init__(content)
        self.nodes: dict[str, fx.Node] = {}

    def persistent_load(self, written: Any) -> Any:
        """What ``written`` stands for."""
        kind, *facts = written
        if kind == "node":
            return self.nodes[facts[0]]
        if kind == "op":
            space, packet, overload = facts
            return getattr(getattr(getattr(torch.ops, space), packet), overload)
        return meta_tensor(*facts)
