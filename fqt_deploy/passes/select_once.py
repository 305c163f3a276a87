"""Select samples once per step and run the whole backward below the classifier on them.

Before::

    %g  = fqt.linear_input_grad(%glogits, %w)                             # [N, C], gradient of the classifier's input
    %gy = aten.where(%mask, 0, view(%g, ...))                             # everything below runs on N samples

After::

    %index, %_, %weight = fqt.select_sampled(sqrt(sum(%g * %g, 1)), key, K)
    %k  = fqt.gather_rows(%g, %index) * %weight                           # [K, C]
    %gy = aten.where(fqt.gather_rows(%mask, %index), 0, view(%k, ...))    # K samples; batch norm's backward projects

Kept samples are scaled by one over their inclusion probability, so sums over the batch stay unbiased.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import fx

from fqt_deploy.core.call import call_of, source_of
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import Emitter, TrainingGraph, shape
from fqt_deploy.core.options import GRADIENT_BITS
from fqt_deploy.ops.sample_axes import sample_axes
from fqt_deploy.ops.traits import SampleAxis
from fqt_deploy.passes.batch_axis import descendants, resized, samples_back, samples_first
from fqt_deploy.passes.insert_scq import random_key
from fqt_deploy.passes.pass_base import Pass
from fqt_deploy.passes.shrink_backward import (
    ShrinkBackward,
    ShrinkPlan,
    batch_norm_rows,
    cannot_select,
    plan_shrink,
)

aten = torch.ops.aten
fqt = torch.ops.fqt


FEWEST_VALUES = 3
"""Of a channel, in batch normalization's backward: it takes out two directions, so of two values nothing is left."""


@dataclass(frozen=True)
class Selection:
    """A place in backward where some samples go on and the others end.

    Attributes:
        gradient: what is behind it depends on no other gradient with samples.
        keep: how many samples go on.
    """

    gradient: fx.Node
    keep: int


@dataclass(frozen=True)
class SelectOnce(Pass):
    """Shrink backward to ``round(N / bits)`` samples, drawn by the norm of the classifier's input gradient.

    Attributes:
        bits: factor by which the batch shrinks.
        required: whether a model that does not allow it is an error; else it is left alone.
    """

    bits: Annotated[int, GRADIENT_BITS] = 4
    required: bool = True

    name = "select-once"
    exact = False
    selection = "once"

    def run(self, graph: TrainingGraph) -> bool:
        """Insert the selections, and rewrite every node that depends on them; FQT205 if the model does not allow it."""
        if graph.selection is not None:
            return False
        try:
            plan = plan_selection(graph)
            selections = self.selections(graph, plan)
            _check_batch_norms(graph, plan, selections)
        except FqtError as error:
            if self.required:
                raise
            self._note(graph, error.message + (f" ({error.location})" if error.location else ""))
            return False
        shrink = ShrinkBackward(graph, plan)
        for number, selection in enumerate(selections):
            if selection.keep < shrink.samples:
                behind = descendants(graph, selection.gradient)
                kept, index = self._draw(graph, selection, plan.places[selection.gradient], shrink.samples, number)
                shrink.run(selection.gradient, kept, index, behind)
                graph.selection = self.selection
        return graph.selection is not None

    def selections(self, graph: TrainingGraph, plan: ShrinkPlan) -> list[Selection]:
        """One, at the classifier's input."""
        return [Selection(plan.root, max(1, round(graph.batch / self.bits)))]

    def _draw(
        self, graph: TrainingGraph, selection: Selection, where: SampleAxis, samples: int, number: int
    ) -> tuple[fx.Node, fx.Node]:
        """Nodes of the kept samples of the gradient, scaled, and of their numbers among its ``samples``."""
        gradient, keep = selection.gradient, selection.keep
        emit = Emitter(graph, gradient.next, layer=gradient.meta.get("layer", ""), phase="backward", role="select")
        rows = samples_first(emit, gradient, where, samples)
        score = self.score(emit, rows)
        key = random_key(emit, graph, len(graph.layers) + number, "select_once")
        drawn = emit(fqt.select_sampled.default, score, key, keep)
        index, weight = emit.item(drawn, 0), self.weight(emit, emit.item(drawn, 2))
        scaled = emit(
            aten.mul.Tensor,
            emit(fqt.gather_rows.default, rows, index),
            emit(aten.view.default, weight, [keep, *[1] * (len(shape(rows)) - 1)]),
        )
        return samples_back(emit, scaled, resized(shape(gradient), where, samples, keep)), index

    def score(self, emit: Emitter, rows: fx.Node) -> fx.Node:
        """[N] scores of the rows [N, ...] of the selected gradient: their norms."""
        axes = list(range(1, len(shape(rows))))
        squares = emit(aten.sum.dim_IntList, emit(aten.mul.Tensor, rows, rows), axes)
        return emit(aten.sqrt.default, squares)

    def _note(self, graph: TrainingGraph, reason: str) -> None:
        """Say why this selection, which nobody asked for by name, is not made; a reason counts once."""
        if reason not in graph.selection_note:
            said = f"not {self.selection}: {reason}"
            graph.selection_note = "; ".join(filter(None, (graph.selection_note, said)))

    def weight(self, emit: Emitter, weight: fx.Node) -> fx.Node:
        """[K] factors of the kept rows, from one over their inclusion probabilities: these."""
        return weight


def plan_selection(graph: TrainingGraph) -> ShrinkPlan:
    """The plan for a selection as deep as the full-precision layers at the end of the model allow.

    Raises:
        FqtError: FQT205 if there is no place for one.
    """
    candidates = classifier_input_gradients(graph)
    if not candidates:
        raise FqtError("no layer of the model has a gradient to select samples by", code="FQT205")
    for gradient, where in candidates:
        try:
            if where is None:
                raise cannot_select(gradient, "a classifier whose rows are not grouped by sample")
            return plan_shrink(graph, gradient, where)
        except FqtError as error:
            refusal = error
    raise refusal


def classifier_input_gradients(graph: TrainingGraph) -> list[tuple[fx.Node, SampleAxis | None]]:
    """The gradients of the inputs of the full-precision layers at the end, from the deepest, and where samples lie.

    Where the last layer is binarized, the gradient of its output alone.
    """
    found: list[tuple[fx.Node, fx.Node]] = []  # gradients, and the values that they are gradients of
    for node in graph.graph.nodes:  # backward order: the last layer first
        if node.meta.get("direction") != "input_grad":
            continue
        forward = _forward_of(graph, node)
        if node.meta["record"].binarized:
            found = found or [(unscaled_gradient(node), forward)]
            break
        found.insert(0, (node, source_of(forward)))
    axes = sample_axes(graph)
    return [(gradient, axes.get(gradient) or axes.get(value)) for gradient, value in found]


def unscaled_gradient(product: fx.Node) -> fx.Node:
    """The gradient of the output of a binarized layer, from its input-gradient product: without the weight's scale."""
    scaled: fx.Node = call_of(product).g
    return source_of(scaled) if scaled.target is aten.mul.Tensor else scaled


def _forward_of(graph: TrainingGraph, product: fx.Node) -> fx.Node:
    """The forward product that ``product`` is the input gradient of: a module may be called more than once."""
    forward: list[fx.Node] = [
        n
        for n in graph.graph.nodes
        if n.meta.get("direction") == "forward" and n.meta["record"] is product.meta["record"]
    ]
    return next((n for n in forward if n.meta.get("seq_nr") == product.meta.get("seq_nr")), forward[0])


def _check_batch_norms(graph: TrainingGraph, plan: ShrinkPlan, selections: list[Selection]) -> None:
    """FQT205 if a batch normalization would be left with too few values of a channel."""
    kept: dict[fx.Node, int] = {}
    for selection in selections:
        kept |= dict.fromkeys(descendants(graph, selection.gradient), selection.keep)
    for node in plan.places:
        rows = batch_norm_rows(node)
        if rows is not None and (left := rows // graph.batch * kept[node]) < min(rows, FEWEST_VALUES):
            raise cannot_select(
                node, f"a batch normalization that {kept[node]} of {graph.batch} samples leave {left} values a channel"
            )
