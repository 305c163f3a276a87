"""Run the part of backward that lies behind a selection on the kept samples."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

import torch
from torch import fx

from fqt_deploy.core.call import call_of, update
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import Emitter, TrainingGraph, propagate, shape
from fqt_deploy.ops.aten.spellings import SIZED
from fqt_deploy.ops.sample_axes import alignment, following
from fqt_deploy.ops.traits import SampleAxis
from fqt_deploy.passes.batch_axis import descendants, gather_samples, resized

aten = torch.ops.aten
fqt = torch.ops.fqt

_REASONS = {
    aten.mean.dim: "a mean over the batch in backward",
    aten.mean.default: "a mean over the batch in backward",
    aten.view.default: "a view that hides the batch axis",
}
"""What the model has, by the op that cannot run on some of the samples."""


@dataclass(frozen=True)
class ShrinkPlan:
    """What runs on some of the samples if they are selected at ``root``, as found before anything is changed.

    Attributes:
        root: a gradient with one part for each sample.
        places: where ``root``, and the values behind it that have samples, have them.
        saved: for each node behind ``root``, the operands from elsewhere of which it needs the samples, and where.
    """

    root: fx.Node
    places: dict[fx.Node, SampleAxis]
    saved: dict[fx.Node, dict[fx.Node, SampleAxis]]


def plan_shrink(graph: TrainingGraph, root: fx.Node, where: SampleAxis) -> ShrinkPlan:
    """How everything behind ``root``, which has its samples ``where``, can run on some of them.

    Raises:
        FqtError: FQT205 with the node that cannot.
    """
    behind = descendants(graph, root)
    labelled = descendants(graph, *graph.batch_inputs("target"))
    labelled -= behind | {root}
    plan = ShrinkPlan(root, {root: where}, {})
    for node in graph.graph.nodes:
        if node not in behind or not any(a in plan.places for a in node.all_input_nodes):
            continue
        if node.target is operator.getitem:
            if (item := following(node, plan.places, graph.batch)) is not None:
                plan.places[node] = item
            continue
        aligned = alignment(node, plan.places, graph.batch)
        if aligned is None:
            reason = _REASONS.get(node.target, f"an operator that mixes samples in backward, {node.target}")
            raise cannot_select(node, reason)
        plan.saved[node] = {a: place for a, place in aligned.operands.items() if a not in plan.places}
        if any(a in labelled for a in plan.saved[node]):
            raise cannot_select(node, "a gradient that bypasses the classifier's input")
        if aligned.result is not None:
            plan.places[node] = aligned.result
    return plan


@dataclass
class ShrinkBackward:
    """Rewrites backward, one selection after another in backward order.

    Attributes:
        graph: being rewritten.
        plan: of the first selection, which all others are behind.
        samples: that gradients have at this point; at first the batch.
        index: node of their numbers in the batch, [samples] int32; None while they are all.
    """

    graph: TrainingGraph
    plan: ShrinkPlan
    samples: int = field(init=False)
    index: fx.Node | None = field(init=False, default=None)
    _gathered: dict[tuple[fx.Node, fx.Node], fx.Node] = field(init=False, default_factory=dict)
    """What earlier selections have gathered, by its user and what it was gathered from."""

    def __post_init__(self) -> None:
        self.samples = self.graph.batch

    def run(self, gradient: fx.Node, kept: fx.Node, relative: fx.Node, behind: set[fx.Node]) -> None:
        """Make everything behind ``gradient`` read ``kept`` instead, and run on its samples.

        Args:
            gradient: with ``samples`` samples.
            kept: some of them, scaled.
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
            self._shrink(node, index, keep)
        self.samples, self.index = keep, index

    def _shrink(self, node: fx.Node, index: fx.Node, keep: int) -> None:
        """Gather the saved operands of ``node``, adapt its sizes, and propagate its shape."""
        emit = Emitter(self.graph, node, role="gather")
        for operand, where in self.plan.saved.get(node, {}).items():
            rows = gather_samples(emit, operand, where, self.graph.batch, index, keep)
            node.replace_input_with(self._gathered.get((node, operand), operand), rows)
            self._gathered[node, operand] = rows
        if node.target in SIZED and node in self.plan.places:
            update(node, size=resized(shape(node), self.plan.places[node], self.samples, keep))
        elif node.target is fqt.batch_norm_backward.default:
            update(node, projected=True)
        node.meta["samples"] = keep
        propagate(node)


def batch_norm_rows(node: fx.Node) -> int | None:
    """How many values of a channel a batch normalization's backward goes over; None for another node."""
    if node.target is not fqt.batch_norm_backward.default:
        return None
    *rows, _ = shape(call_of(node).gradient)
    return int(torch.Size(rows).numel())


def cannot_select(node: fx.Node, what: str) -> FqtError:
    """The error for a model that has ``what`` at ``node``."""
    return FqtError(
        f"cannot select samples for the whole backward: the model has {what}",
        code="FQT205",
        node=node,
        hint="use --agp sampled or --agp topk",
    )
