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
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import Emitter, TrainingGraph, propagate, shape
from fqt_deploy.ops.aten_reductions import reduced_axes
from fqt_deploy.passes.annotate_layers import INPUT_GRAD
from fqt_deploy.passes.batch_axis import batch_leading
from fqt_deploy.passes.insert_scq import random_key
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
fqt = torch.ops.fqt

_MEANS = (aten.mean.dim, aten.mean.default)


@dataclass(frozen=True)
class SelectOnce(Pass):
    """Shrink backward to ``round(N / bits)`` samples, drawn by the norm of the classifier's input gradient.

    Attributes:
        bits: factor by which the batch shrinks.
    """

    bits: int = 4

    name = "select-once"
    exact = False

    def run(self, graph: TrainingGraph) -> bool:
        """Insert the selection, then rewrite every node that depends on the selected gradient."""
        keep = max(1, round(graph.batch / self.bits))
        if keep >= graph.batch:
            return False
        root = _selected_gradient(graph)
        leading = batch_leading(graph)
        below = _descendants({root}, graph)
        labelled = _descendants({graph.placeholder("y")}, graph)
        following = root.next
        index, kept = self._select(graph, root, following, keep)
        for node in below:
            node.replace_input_with(root, kept)
        _Shrink(graph, index, kept, keep, leading, below, labelled).run()
        graph.kept_samples = keep
        return True

    def _select(self, graph: TrainingGraph, root: fx.Node, anchor: fx.Node, keep: int) -> tuple[fx.Node, fx.Node]:
        """Nodes of the kept indices, and of the kept rows of ``root``, scaled."""
        emit = Emitter(graph, anchor, layer=root.meta.get("layer", ""), phase="backward", role="select")
        batch, extents = graph.batch, shape(root)
        rows = emit(aten.view.default, root, [batch, _product(extents) // batch])
        score = self.score(emit, rows)
        key = random_key(emit, graph, len(graph.layers), "select_once")
        selection = emit(fqt.select_sampled.default, score, key, keep)
        index, weight = emit.item(selection, 0), self.weight(emit, emit.item(selection, 2))
        gathered = emit(fqt.gather_rows.default, rows, index)
        scaled = emit(aten.mul.Tensor, gathered, emit(aten.view.default, weight, [keep, 1]))
        return index, emit(aten.view.default, scaled, [extents[0] // batch * keep, *extents[1:]])

    def score(self, emit: Emitter, rows: fx.Node) -> fx.Node:
        """[N] scores of the rows [N, C] of the selected gradient: their norms."""
        squares = emit(aten.sum.dim_IntList, emit(aten.mul.Tensor, rows, rows), [1])
        return emit(aten.sqrt.default, squares)

    def weight(self, emit: Emitter, weight: fx.Node) -> fx.Node:
        """[K] factors of the kept rows, from one over their inclusion probabilities: these."""
        return weight


def _selected_gradient(graph: TrainingGraph) -> fx.Node:
    """The gradient of the input of the full-precision linear layers at the end of the model."""
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


@dataclass(frozen=True)
class _Shrink:
    """Rewrites the nodes below the selection, in graph order.

    Attributes:
        graph: being rewritten.
        index: node of the kept sample numbers, [K] int32.
        kept: node of the kept rows of the selected gradient.
        keep: K.
        leading: values with the samples on their leading axis, before the rewrite.
        below: nodes that depend on the selected gradient.
        labelled: nodes that depend on the labels: gradients, when not below.
    """

    graph: TrainingGraph
    index: fx.Node
    kept: fx.Node
    keep: int
    leading: set[fx.Node]
    below: set[fx.Node]
    labelled: set[fx.Node]

    def run(self) -> None:
        """Gather the saved operands of every node below, adapt its sizes, and propagate shapes."""
        for node in [n for n in self.graph.graph.nodes if n in self.below]:
            if node.op != "call_function":
                continue
            node.args = fx.map_arg(node.args, lambda a, user=node: self._operand(a, user))
            if node.target in (aten.view.default, aten.expand.default):
                self._resize(node)
            elif node.target in _MEANS and self._reduces_batch(node):
                raise self._unsupported(node, "a mean over the batch in backward")
            elif node.target is fqt.batch_norm_backward.default:
                node.args = (*node.args[:-1], True)
            propagate(node)

    def _operand(self, operand: fx.Node, user: fx.Node) -> fx.Node:
        if operand in self.below or operand not in self.leading or not isinstance(operand.meta["val"], torch.Tensor):
            return operand
        if operand in self.labelled:
            raise self._unsupported(user, "a gradient that bypasses the classifier's input")
        return self._gather(operand, user)

    def _gather(self, operand: fx.Node, user: fx.Node) -> fx.Node:
        """Rows of the kept samples of ``operand``."""
        emit = Emitter(self.graph, user, role="gather")
        extents, batch = shape(operand), self.graph.batch
        if extents[0] == batch and len(extents) != 2:
            return emit(fqt.gather_rows.default, operand, self.index)
        multiple = extents[0] // batch
        grouped = emit(aten.view.default, operand, [batch, multiple, *extents[1:]])
        rows = emit(fqt.gather_rows.default, grouped, self.index)
        return emit(aten.view.default, rows, [self.keep * multiple, *extents[1:]])

    def _resize(self, node: fx.Node) -> None:
        source: Any = node.args[0]
        if source not in self.leading and source not in self.below and source is not self.kept:
            return
        if node not in self.leading:
            if node.target is aten.view.default and _product(shape(source)) == _product(shape(node)):
                return  # a view of a value without samples, such as a weight gradient
            raise self._unsupported(node, "a view that hides the batch axis")
        size = shape(node)
        node.args = (source, [size[0] // self.graph.batch * self.keep, *size[1:]])

    def _reduces_batch(self, node: fx.Node) -> bool:
        source: Any = node.args[0]
        return source in self.leading and 0 in reduced_axes(node.args, len(shape(source)))

    @staticmethod
    def _unsupported(node: fx.Node, what: str) -> FqtError:
        return FqtError(
            f"cannot select samples once for the whole backward: the model has {what}",
            code="FQT205",
            node=node,
            hint="use --agp sampled or --agp topk",
        )


def _product(extents: list[int]) -> int:
    total = 1
    for extent in extents:
        total *= extent
    return total


def _descendants(roots: set[fx.Node], graph: TrainingGraph) -> set[fx.Node]:
    """All call nodes that depend on ``roots``, without the roots themselves."""
    found = set(roots)
    for node in graph.graph.nodes:
        if node.op == "call_function" and any(a in found for a in node.all_input_nodes):
            found.add(node)
    return found - roots
