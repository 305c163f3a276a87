"""Passes that the compiler does not have: what was tried to train better at the same cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.graph import Emitter, TrainingGraph
from fqt_deploy.passes.insert_scq import InsertSCQ
from fqt_deploy.passes.select_once import SelectOnce

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class PowerSelection(SelectOnce):
    """Selection with probability proportional to ``norm ** power``; 0 is uniform."""

    power: float = 1.0

    def score(self, emit: Emitter, rows: fx.Node) -> fx.Node:
        """[N] powers of the norms."""
        norm = super().score(emit, rows)
        return norm if self.power == 1 else emit(aten.pow.Tensor_Scalar, norm, self.power)


@dataclass(frozen=True)
class DefensiveSelection(SelectOnce):
    """Selection by a mixture: ``uniform`` of the probability is spread evenly, the rest by norm."""

    uniform: float = 0.5

    def score(self, emit: Emitter, rows: fx.Node) -> fx.Node:
        """[N] norms over their mean, plus a constant."""
        norm = super().score(emit, rows)
        mean = emit(aten.clamp_min.default, emit(aten.mean.dim, norm, [0], True), 1e-30)
        share = emit(aten.mul.Tensor, emit(aten.div.Tensor, norm, mean), 1 - self.uniform)
        return emit(aten.add.Tensor, share, self.uniform)


@dataclass(frozen=True)
class UnweightedSelection(SelectOnce):
    """Selection by norm without weights: what is kept counts alike, so hard samples count more. Biased."""

    def weight(self, emit: Emitter, weight: fx.Node) -> fx.Node:
        """[K] equal weights, N / K."""
        return emit(aten.add.Tensor, emit(aten.mul.Tensor, weight, 0.0), float(self.bits))


@dataclass(frozen=True)
class ClippedSelection(SelectOnce):
    """Selection by norm with weights of at most ``largest`` times N / K: less variance, some bias."""

    largest: float = 2.0

    def weight(self, emit: Emitter, weight: fx.Node) -> fx.Node:
        """[K] weights."""
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
class ClippedSCQ(InsertSCQ):
    """Quantization over a part of each group's range: finer steps, and what lies outside becomes the outermost code."""

    share: float = 0.7

    def run(self, graph: TrainingGraph) -> bool:
        """Quantize, then shrink the ranges."""
        changed = super().run(graph)
        for node in graph.calls(fqt.quantization_grid.default):
            emit = Emitter(graph, node)
            low, high = (emit(aten.mul.Tensor, bound, self.share) for bound in node.args[:2])
            node.args = (low, high, *node.args[2:])
        return changed
