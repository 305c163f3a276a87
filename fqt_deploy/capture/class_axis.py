"""The axis of the logits along which the classes lie that a loss indexes by labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.core.graph import TrainingGraph, shape
from fqt_deploy.ops.aten.spellings import ALIASES

aten = torch.ops.aten


def class_axis(graph: TrainingGraph, labels: fx.Node, indexed: list[tuple[fx.Node, int]], classes: int) -> int | None:
    """The axis of the logits that labels index; None if they index something else.

    What is indexed is followed back to the logits, through element-wise ops, permutations and reshapes that keep the
    axis.

    Args:
        graph: the graph as captured.
        labels: the input that holds the labels.
        indexed: the ops that read or write at an index made of labels, with the extent of the axis.
        classes: one more than the largest label.
    """
    logits = _source(graph.output("logits"))
    for node, extent in indexed:
        if node.target is aten.gather.default:
            axis = _axis_in(node.args[0], int(node.args[1]), logits)  # type: ignore[arg-type]
            if axis is not None and shape(logits)[axis] == extent:
                return axis
    count = labels.meta["val"].numel()
    fits = shape(logits)[-1:] == [classes] and count * classes == logits.meta["val"].numel()
    return len(shape(logits)) - 1 if fits else None


def _source(node: fx.Node) -> fx.Node:
    while node.target in ALIASES:
        node = node.args[0]  # type: ignore[assignment]
    return node


def _axis_in(value: Any, axis: int, logits: fx.Node) -> int | None:
    """Axis ``axis`` of ``value`` as an axis of ``logits``, if ``value`` is made of them element by element."""
    pending = [(_source(value), axis % len(shape(value)))]
    seen: set[fx.Node] = set()
    while pending:
        node, axis = pending.pop()
        if node is logits:
            return axis
        if node in seen or node.op != "call_function":
            continue
        seen.add(node)
        for operand in node.all_input_nodes:
            at = _moved(node, _source(operand), axis)
            if at is not None:
                pending.append((_source(operand), at))
    return None


def _moved(node: fx.Node, operand: fx.Node, axis: int) -> int | None:
    """Axis ``axis`` of ``node`` as an axis of its operand; None where it has no such axis."""
    if not isinstance(operand.meta.get("val"), Tensor) or not isinstance(node.meta.get("val"), Tensor):
        return None
    before, after = shape(operand), shape(node)
    if node.target is aten.permute.default:
        order: Any = node.args[1]
        return int(order[axis]) % len(before)
    if before == after:
        return axis
    if node.target is not aten.view.default:
        return None
    outer = 1
    for extent in after[:axis]:
        outer *= extent
    product = 1
    for position, extent in enumerate(before):
        if product == outer and extent == after[axis]:
            return position
        product *= extent
    return None
