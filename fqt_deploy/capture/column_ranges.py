"""Columns of an integer input that look things up in tables of their own, as those of tabular data do.

Each column is followed by itself from where it is picked::

    %city = aten.select(%x, 1, 0);  aten.embedding(%cities, %city)      # column 0: 0 to 9
    %shop = aten.select(%x, 1, 1);  aten.embedding(%shops, %shop)       # column 1: 0 to 19
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from fqt_deploy.capture.label_values import is_integer
from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import TrainingGraph
from fqt_deploy.ops.aten.spellings import IN_ORDER

aten = torch.ops.aten

Columns = tuple[int, ...]
"""Numbers of columns of an input."""


def columns_picked(graph: TrainingGraph, given: fx.Node) -> Mapping[fx.Node, Columns]:
    """The values that are columns of the input ``given``, itself among them, with the numbers of these columns.

    Empty where no column is picked. What is computed from them is followed from each by itself.
    """
    extents = given.meta["val"].shape
    if len(extents) < 2:
        return {}
    found: dict[fx.Node, Columns] = {given: tuple(range(extents[-1]))}
    single: set[fx.Node] = set()
    for node in graph.graph.nodes:
        operand = node.args[0] if node.op == "call_function" and node.args else None
        if isinstance(operand, fx.Node) and operand in found and operand not in single and is_integer(node):
            columns = _picked(node, operand, found[operand])
            if columns is not None:
                found[node] = columns
            if node.target is aten.select.int and columns is not None and len(columns) == 1:
                single.add(node)  # columns lie along no axis any more
    return found if any(columns != found[given] for columns in found.values()) else {}


def _picked(node: fx.Node, operand: fx.Node, columns: Columns) -> Columns | None:
    """The columns that ``node`` holds of those along the last axis of ``operand``; None where they do not lie there."""
    before, after = operand.meta["val"].shape, node.meta["val"].shape
    if node.target in IN_ORDER:
        return columns if before == after else None
    if node.target not in (aten.select.int, aten.slice.Tensor):
        return None
    call = call_of(node)
    if call.dim % len(before) != len(before) - 1:
        return columns
    picks_one = node.target is aten.select.int
    return (columns[call.index],) if picks_one else columns[slice(call.start, call.end, call.step)]
