"""Selections that the compiler does not have: what was tried to train better at the same cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, shape
from fqt_deploy.passes.select_once import SelectOnce

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class PowerSelection(SelectOnce):
    """Selection with probability proportional to ``norm ** power``; 0 is uniform."""

    power: float = 1.0

    def score(self, emit: Emitter, rows: fx.Node) -> fx.Node:
        """The scores [N]: powers of the norms."""
        norm = super().score(emit, rows)
        return norm if self.power == 1 else emit(aten.pow.Tensor_Scalar, norm, self.power)


@dataclass(frozen=True)
class DefensiveSelection(SelectOnce):
    """A selection by a mixture: ``uniform`` of the probability is spread evenly, the rest by norm."""

    uniform: float = 0.5

    def score(self, emit: Emitter, rows: fx.Node) -> fx.Node:
        """The scores [N]: norms over their mean, plus a constant."""
        norm = super().score(emit, rows)
        mean = emit(aten.clamp_min.default, emit(aten.mean.dim, norm, [0], True), 1e-30)
        share = emit(aten.mul.Tensor, emit(aten.div.Tensor, norm, mean), 1 - self.uniform)
        return emit(aten.add.Tensor, share, self.uniform)


@dataclass(frozen=True)
class TemperedSelection(PowerSelection):
    """Selection whose weights are brought nearer to each other: less variance, and hard samples count more. Biased.

    Attributes:
        exponent: the exponent of the weights; 1 leaves them, 0 makes them all N / K.
    """

    exponent: float = 0.0

    def weight(self, emit: Emitter, weight: fx.Node) -> fx.Node:
        """The weights [K] of the kept samples."""
        relative = emit(aten.mul.Tensor, weight, 1 / self.bits)
        return emit(aten.mul.Tensor, emit(aten.pow.Tensor_Scalar, relative, self.exponent), float(self.bits))


@dataclass(frozen=True)
class ClippedSelection(SelectOnce):
    """Selection by norm with weights of at most ``largest`` times N / K: less variance, some bias."""

    largest: float = 2.0

    def weight(self, emit: Emitter, weight: fx.Node) -> fx.Node:
        """The weights [K] of the kept samples."""
        return emit(aten.clamp_max.default, weight, self.largest * self.bits)


@dataclass(frozen=True)
class UnprojectedSelection(SelectOnce):
    """Selection with batch normalization's backward as it is for a whole batch."""

    def run(self, graph: TrainingGraph) -> bool:
        """Select, then take the projection out."""
        changed = super().run(graph)
        for node in graph.calls(fqt.batch_norm_backward.default):
            node.args = (*node.args[:-1], False)
        return changed


@dataclass(frozen=True)
class WeightedProjection(SelectOnce):
    """Batch normalization's backward as a ratio of weighted sums: a kept row counts as often as it stands for others.

    With weights ``w`` that gradients carry, ``dx = scale * (g - w * (sum(g) / sum(w) + c * sum(g c) / sum(w c c)))``,
    ``c`` centered with them too.
    """

    def run(self, graph: TrainingGraph) -> bool:
        """Select, then spell out every batch normalization."""
        changed = super().run(graph)
        for node in list(graph.calls(fqt.batch_norm_backward.default)):
            self._spell_out(graph, node)
        return changed

    def _spell_out(self, graph: TrainingGraph, node: fx.Node) -> None:
        gradient, x, weight, mean, inverse, _ = node.args
        emit = Emitter(graph, node)
        (selection,) = graph.calls(fqt.select_sampled.default)
        extents = shape(x)  # type: ignore[arg-type]
        axes, ones = list(range(len(extents) - 1)), [1] * (len(extents) - 1)
        rows = emit(aten.view.default, emit.item(selection, 2), [extents[0], *ones])
        positions = 1.0
        for extent in extents[1:-1]:
            positions *= extent

        def total(value: fx.Node) -> fx.Node:
            return emit(aten.sum.dim_IntList, value, axes)

        def times(*values: Any) -> fx.Node:
            product: fx.Node = values[0]
            for value in values[1:]:
                product = emit(aten.mul.Tensor, product, value)
            return product

        mass = emit(aten.view.default, times(emit(aten.sum.dim_IntList, emit.item(selection, 2), [0]), positions), [1])
        center = emit(aten.div.Tensor, total(times(x, rows)), mass)
        c = emit(aten.sub.Tensor, x, center)
        weighted = times(c, rows)
        energy = emit(aten.clamp_min.default, total(times(weighted, c)), 1e-12)
        slope = emit(aten.div.Tensor, total(times(gradient, c)), energy)
        offset = emit(aten.div.Tensor, total(gradient), mass)  # type: ignore[arg-type]
        scale = inverse if weight is None else times(weight, inverse)
        fitted = emit(aten.add.Tensor, times(rows, offset), times(weighted, slope))
        dx = times(emit(aten.sub.Tensor, gradient, fitted), scale)
        dx.meta["samples"] = extents[0]
        dweight = times(total(times(gradient, emit(aten.sub.Tensor, x, mean))), inverse)
        results = (dx, dweight, total(gradient))  # type: ignore[arg-type]
        for user in list(node.users):
            replace(graph, user, results[user.args[1]])  # type: ignore[index]
