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
from math import prod
from typing import Annotated

import torch
from torch import fx

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import Emitter, TrainingGraph, shape
from fqt_deploy.core.options import GRADIENT_BITS
from fqt_deploy.passes.annotate_layers import INPUT_GRAD
from fqt_deploy.passes.insert_scq import random_key
from fqt_deploy.passes.pass_base import Pass
from fqt_deploy.passes.shrink_backward import ShrinkBackward, check_can_shrink, descendants

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class Selection:
    """A place in backward where some samples go on and the others end.

    Attributes:
        gradient: what is behind it depends on no other gradient with samples on its leading axis.
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
        try:
            check_can_shrink(graph, classifier_input_gradient(graph))
        except FqtError as error:
            if self.required:
                raise
            graph.selection_note = error.message + (f" ({error.location})" if error.location else "")
            return False
        shrink, changed = ShrinkBackward(graph), False
        for number, selection in enumerate(self.selections(graph)):
            if selection.keep < shrink.samples:
                behind = descendants(selection.gradient, graph)
                kept, index = self._draw(graph, selection, shrink.samples, number)
                shrink.run(selection.gradient, kept, index, behind)
                changed = True
        graph.selection = self.selection if changed else None
        return changed

    def selections(self, graph: TrainingGraph) -> list[Selection]:
        """One, at the classifier's input."""
        return [Selection(classifier_input_gradient(graph), max(1, round(graph.batch / self.bits)))]

    def _draw(self, graph: TrainingGraph, selection: Selection, samples: int, number: int) -> tuple[fx.Node, fx.Node]:
        """Nodes of the kept rows of the gradient, scaled, and of their numbers among its ``samples``."""
        gradient, keep = selection.gradient, selection.keep
        emit = Emitter(graph, gradient.next, layer=gradient.meta.get("layer", ""), phase="backward", role="select")
        extents = shape(gradient)
        rows = emit(aten.view.default, gradient, [samples, prod(extents) // samples])
        score = self.score(emit, rows)
        key = random_key(emit, graph, len(graph.layers) + number, "select_once")
        drawn = emit(fqt.select_sampled.default, score, key, keep)
        index, weight = emit.item(drawn, 0), self.weight(emit, emit.item(drawn, 2))
        scaled = emit(
            aten.mul.Tensor,
            emit(fqt.gather_rows.default, rows, index),
            emit(aten.view.default, weight, [keep, 1]),
        )
        return emit(aten.view.default, scaled, [extents[0] // samples * keep, *extents[1:]]), index

    def score(self, emit: Emitter, rows: fx.Node) -> fx.Node:
        """[N] scores of the rows [N, C] of the selected gradient: their norms."""
        squares = emit(aten.sum.dim_IntList, emit(aten.mul.Tensor, rows, rows), [1])
        return emit(aten.sqrt.default, squares)

    def weight(self, emit: Emitter, weight: fx.Node) -> fx.Node:
        """[K] factors of the kept rows, from one over their inclusion probabilities: these."""
        return weight


def classifier_input_gradient(graph: TrainingGraph) -> fx.Node:
    """The gradient of the input of the full-precision linear layers at the end of the model.

    Raises:
        FqtError: FQT205 if there is none.
    """
    products = [n for n in graph.calls(*INPUT_GRAD) if "record" in n.meta]
    head: fx.Node | None = None
    for node in products:  # backward order: the last layer first
        record = node.meta["record"]
        if record.binarized or record.kind != "linear":
            return head if head is not None else node.args[0]  # type: ignore[return-value]
        head = node
    if head is None:
        raise FqtError("no layer of the model has a gradient to select samples by", code="FQT205")
    return head
