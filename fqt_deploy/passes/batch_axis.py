"""Which axis of each value of a joint graph holds the samples of the batch."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, shape
from fqt_deploy.ops.op import op_of

aten = torch.ops.aten
fqt = torch.ops.fqt


def batch_axes(graph: TrainingGraph) -> dict[fx.Node, int]:
    """The axis of each value that is the batch, or the batch times rows of each sample (samples outermost).

    Values without such an axis are left out. Of a batch normalization, only the first output follows the batch; its
    statistics do not. Each op says in its definition how it treats the axis.
    """
    found = {graph.placeholder(name): 0 for name in ("x", "y") if name in graph.inputs}
    for node in graph.graph.nodes:
        if node.op == "call_function" and (axis := _axis(node, found, graph.batch)) is not None:
            found[node] = axis
    return found


def batch_leading(graph: TrainingGraph) -> set[fx.Node]:
    """Nodes whose leading axis is the batch, or the batch times rows of each sample."""
    return {node for node, axis in batch_axes(graph).items() if axis == 0}


def _axis(node: fx.Node, found: dict[fx.Node, int], batch: int) -> int | None:
    call = call_of(node)
    if node.target is operator.getitem:
        return found.get(call.source) if call.index == 0 else None
    op = op_of(node)

    def axis_of(operand: Any) -> int | None:
        return found.get(operand) if isinstance(operand, fx.Node) else None

    return None if op is None else op.traits.batch(call, axis_of, batch)


def gather_samples(emit: Emitter, value: fx.Node, samples: int, index: fx.Node, keep: int) -> fx.Node:
    """Rows of ``keep`` samples of ``value``, which has ``samples`` on its leading axis, or rows of each."""
    extents = shape(value)
    if extents[0] == samples and len(extents) != 2:
        return emit(fqt.gather_rows.default, value, index)
    multiple = extents[0] // samples
    rows = emit(fqt.gather_rows.default, emit(aten.view.default, value, [samples, multiple, *extents[1:]]), index)
    return emit(aten.view.default, rows, [keep * multiple, *extents[1:]])
