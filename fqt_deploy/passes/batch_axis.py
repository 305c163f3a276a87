"""Which values of a joint graph have the samples of the batch on their leading axis."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.graph import Emitter, TrainingGraph, shape
from fqt_deploy.ops.aten.pointwise import POINTWISE
from fqt_deploy.ops.aten.reductions import REDUCTIONS, reduced_axes

aten = torch.ops.aten
fqt = torch.ops.fqt

_FOLLOWS_FIRST_OPERAND = (
    fqt.conv2d.default, fqt.linear.default, fqt.conv2d_input_grad.default, fqt.linear_input_grad.default,
    fqt.max_pool2d.default, fqt.max_pool2d_argmax.default, fqt.max_pool2d_backward.default, fqt.avg_pool2d.default,
    fqt.avg_pool2d_backward.default, fqt.sign.default, fqt.straight_through.default, fqt.batch_norm.default,
    fqt.batch_norm_backward.default, fqt.batch_matmul.default, aten.gather.default, aten.scatter.value,
    aten.view.default, aten.expand.default, aten.full_like.default, aten.zeros_like.default, aten.ones_like.default,
)  # fmt: skip
_AXIS_OPS = (aten.slice.Tensor, aten.select.int, aten.cat.default)
_CONSTANTS = (aten.full.default, aten.zeros.default, aten.ones.default, fqt.dropout_mask.default)


def batch_leading(graph: TrainingGraph) -> set[fx.Node]:
    """Nodes whose leading axis is the batch, or the batch times rows of each sample (samples outermost).

    Of a batch normalization, only the first output follows the batch; its statistics do not.
    """
    found = {graph.placeholder(name) for name in ("x", "y") if name in graph.inputs}
    for node in graph.graph.nodes:
        if node.op == "call_function" and _leads(node, found, graph.batch):
            found.add(node)
    return found


def _leads(node: fx.Node, found: set[fx.Node], batch: int) -> bool:
    target: Any = node.target
    operands = [a for a in node.args if isinstance(a, fx.Node)]
    first = operands[0] if operands else None
    if target is operator.getitem:
        return first in found and node.args[1] == 0
    if isinstance(node.meta["val"], (tuple, list)):
        return target in _FOLLOWS_FIRST_OPERAND and first in found
    extents = shape(node)
    if not extents or extents[0] % batch:
        return False
    if target in POINTWISE:
        return any(a in found and shape(a)[:1] == extents[:1] and len(shape(a)) == len(extents) for a in operands)
    if target in REDUCTIONS:
        return first in found and 0 not in reduced_axes(node.args, len(shape(first)))  # type: ignore[arg-type]
    if target is fqt.scatter_rows.default:
        return node.meta.get("scatters") == "samples"
    if target is aten.permute.default:
        return first in found and node.args[1][0] == 0  # type: ignore[index]
    if target in _AXIS_OPS:
        tensors = node.args[0] if isinstance(node.args[0], (list, tuple)) else [first]
        axis = node.args[1] if len(node.args) > 1 else 0
        return all(t in found for t in tensors) and axis != 0
    if target in _CONSTANTS:
        return extents[0] == batch
    return target in _FOLLOWS_FIRST_OPERAND and first in found


def gather_samples(emit: Emitter, value: fx.Node, samples: int, index: fx.Node, keep: int) -> fx.Node:
    """Rows of ``keep`` samples of ``value``, which has ``samples`` on its leading axis, or rows of each."""
    extents = shape(value)
    if extents[0] == samples and len(extents) != 2:
        return emit(fqt.gather_rows.default, value, index)
    multiple = extents[0] // samples
    rows = emit(fqt.gather_rows.default, emit(aten.view.default, value, [samples, multiple, *extents[1:]]), index)
    return emit(aten.view.default, rows, [keep * multiple, *extents[1:]])
