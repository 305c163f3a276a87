"""Run the part of backward that lies behind a selection on the kept samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import Emitter, TrainingGraph, propagate, shape
from fqt_deploy.ops.aten_reductions import reduced_axes
from fqt_deploy.passes.batch_axis import batch_leading

aten = torch.ops.aten
fqt = torch.ops.fqt

_MEANS = (aten.mean.dim, aten.mean.default)


@dataclass
class ShrinkBackward:
    """Rewrites backward, one selection after another in backward order.

    Attributes:
        graph: being rewritten.
        samples: on the leading axis of gradients at this point; at first the batch.
        index: node of their numbers in the batch, [samples] int32; None while they are all.
    """

    graph: TrainingGraph
    samples: int = field(init=False)
    index: fx.Node | None = field(init=False, default=None)
    _leading: set[fx.Node] = field(init=False)
    _labelled: set[fx.Node] = field(init=False)
    _gathered: dict[fx.Node, fx.Node] = field(init=False, default_factory=dict)
    """Rows of saved values that earlier selections have gathered, and of what."""

    def __post_init__(self) -> None:
        self.samples = self.graph.batch
        self._leading = batch_leading(self.graph)
        self._labelled = descendants(self.graph.placeholder("y"), self.graph)

    def run(self, gradient: fx.Node, kept: fx.Node, relative: fx.Node, behind: set[fx.Node]) -> None:
        """Make everything behind ``gradient`` read ``kept`` instead, and run on its samples.

        Args:
            gradient: with ``samples`` samples on its leading axis.
            kept: some of its rows, scaled.
            relative: their numbers among the ``samples``, [K] int32, ascending.
            behind: the nodes that depend on ``gradient`` but for those of the selection itself.
        """
        (keep,) = shape(relative)
        index = relative
        if self.index is not None:
            index = Emitter(self.graph, kept, role="select")(fqt.gather_rows.default, self.index, relative)
        kept.meta["samples"] = keep
        for node in [n for n in self.graph.graph.nodes if n in behind]:
            node.replace_input_with(gradient, kept)
            self._shrink(node, behind | {kept}, index, keep)
        self.samples, self.index = keep, index

    def _shrink(self, node: fx.Node, behind: set[fx.Node], index: fx.Node, keep: int) -> None:
        """Gather the saved operands of ``node``, adapt its sizes, and propagate its shape."""
        node.args = fx.map_arg(node.args, lambda operand: self._operand(operand, node, behind, index, keep))
        if node.target in (aten.view.default, aten.expand.default):
            self._resize(node, behind, keep)
        elif node.target in _MEANS and self._reduces_batch(node):
            raise _unsupported(node, "a mean over the batch in backward")
        elif node.target is fqt.batch_norm_backward.default:
            node.args = (*node.args[:-1], True)
        node.meta["samples"] = keep
        propagate(node)

    def _operand(self, operand: fx.Node, user: fx.Node, behind: set[fx.Node], index: fx.Node, keep: int) -> fx.Node:
        if operand in behind or operand not in self._leading or not isinstance(operand.meta["val"], torch.Tensor):
            return operand
        source = self._gathered.get(operand, operand)
        if source in self._labelled:
            raise _unsupported(user, "a gradient that bypasses the classifier's input")
        rows = _gather(Emitter(self.graph, user, role="gather"), source, self.graph.batch, index, keep)
        self._leading.add(rows)
        self._gathered[rows] = source
        return rows

    def _resize(self, node: fx.Node, behind: set[fx.Node], keep: int) -> None:
        source: Any = node.args[0]
        if source not in self._leading and source not in behind:
            return
        if node not in self._leading:
            if node.target is aten.view.default and prod(shape(source)) == prod(shape(node)):
                return  # a view of a value without samples, such as a weight gradient
            raise _unsupported(node, "a view that hides the batch axis")
        size = shape(node)
        node.args = (source, [size[0] // self.samples * keep, *size[1:]])

    def _reduces_batch(self, node: fx.Node) -> bool:
        source: Any = node.args[0]
        return source in self._leading and 0 in reduced_axes(node.args, len(shape(source)))


def descendants(root: fx.Node, graph: TrainingGraph) -> set[fx.Node]:
    """All call nodes that depend on ``root``, without itself."""
    found = {root}
    for node in graph.graph.nodes:
        if node.op == "call_function" and any(a in found for a in node.all_input_nodes):
            found.add(node)
    return found - {root}


def _gather(emit: Emitter, value: fx.Node, samples: int, index: fx.Node, keep: int) -> fx.Node:
    """Rows of the kept samples of ``value``, which has ``samples``."""
    extents = shape(value)
    if extents[0] == samples and len(extents) != 2:
        return emit(fqt.gather_rows.default, value, index)
    multiple = extents[0] // samples
    rows = emit(fqt.gather_rows.default, emit(aten.view.default, value, [samples, multiple, *extents[1:]]), index)
    return emit(aten.view.default, rows, [keep * multiple, *extents[1:]])


def _unsupported(node: fx.Node, what: str) -> FqtError:
    return FqtError(
        f"cannot select samples for the whole backward: the model has {what}",
        code="FQT205",
        node=node,
        hint="use --agp sampled or --agp topk",
    )
