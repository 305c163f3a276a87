"""Run the part of backward that lies behind a selection on the kept samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.call import call_of, source_of, update
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import Emitter, TrainingGraph, propagate, shape
from fqt_deploy.ops.aten.reductions import reduced_axes
from fqt_deploy.passes.batch_axis import batch_leading, gather_samples

aten = torch.ops.aten
fqt = torch.ops.fqt

_MEANS = (aten.mean.dim, aten.mean.default)
_HIDDEN = "a view that hides the batch axis"
_SIZED = (aten.view.default, aten.expand.default)
"""Ops with their result's shape among their arguments."""


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
    _gathered: dict[fx.Node, fx.Node] = field(init=False, default_factory=dict)
    """Rows of saved values that earlier selections have gathered, and of what."""

    def __post_init__(self) -> None:
        self.samples = self.graph.batch
        self._leading = batch_leading(self.graph)

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
        if node.target in _SIZED and node in self._leading:
            size = shape(node)
            update(node, size=[size[0] // self.samples * keep, *size[1:]])
        elif node.target is aten.view.default and prod(shape(source_of(node))) != prod(shape(node)):
            raise _unsupported(node, _HIDDEN)
        elif node.target is fqt.batch_norm_backward.default:
            update(node, projected=True)
        node.meta["samples"] = keep
        propagate(node)

    def _operand(self, operand: fx.Node, user: fx.Node, behind: set[fx.Node], index: fx.Node, keep: int) -> fx.Node:
        if operand in behind or operand not in self._leading or not isinstance(operand.meta["val"], torch.Tensor):
            return operand
        source = self._gathered.get(operand, operand)
        rows = gather_samples(Emitter(self.graph, user, role="gather"), source, self.graph.batch, index, keep)
        self._leading.add(rows)
        self._gathered[rows] = source
        return rows


def descendants(root: fx.Node, graph: TrainingGraph) -> set[fx.Node]:
    """All call nodes that depend on ``root``, without itself."""
    found = {root}
    for node in graph.graph.nodes:
        if node.op == "call_function" and any(a in found for a in node.all_input_nodes):
            found.add(node)
    return found - {root}


def check_can_shrink(graph: TrainingGraph, gradient: fx.Node) -> None:
    """Whether everything behind ``gradient`` can run on some of the samples.

    Raises:
        FqtError: FQT205 with the node that cannot, before anything is changed.
    """
    leading, behind = batch_leading(graph), descendants(gradient, graph)
    labelled = descendants(graph.placeholder("y"), graph) - behind - {gradient}
    for node in graph.graph.nodes:
        if node in behind:
            what = _obstacle(node, leading, labelled)
            if what is not None:
                raise _unsupported(node, what)


def _obstacle(node: fx.Node, leading: set[fx.Node], labelled: set[fx.Node]) -> str | None:
    """What keeps ``node`` from running on some of the samples."""
    if any(a in labelled and a in leading and isinstance(a.meta["val"], torch.Tensor) for a in node.all_input_nodes):
        return "a gradient that bypasses the classifier's input"
    source: Any = node.args[0] if node.args else None
    if node.target in _MEANS and source in leading and 0 in reduced_axes(call_of(node)):
        return "a mean over the batch in backward"
    if node.target in _SIZED and source in leading and node not in leading:
        return _HIDDEN
    return None


def _unsupported(node: fx.Node, what: str) -> FqtError:
    return FqtError(
        f"cannot select samples for the whole backward: the model has {what}",
        code="FQT205",
        node=node,
        hint="use --agp sampled or --agp topk",
    )
