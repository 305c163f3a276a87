"""Quantizers that the compiler does not have: what was tried to lose less of the kept gradients at the same cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.graph import Emitter, TrainingGraph, shape
from fqt_deploy.passes.annotate_layers import products_of
from fqt_deploy.passes.insert_scq import InsertSCQ, random_key, samples_view

aten = torch.ops.aten
fqt = torch.ops.fqt


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


@dataclass(frozen=True)
class NoSCQ(InsertSCQ):
    """No quantization, gradients stay fp32: what selection alone costs, so what better quantization gains at most."""

    def run(self, graph: TrainingGraph) -> bool:
        """Returns False: the pass changes nothing."""
        return False


@dataclass(frozen=True)
class SplitSCQ(InsertSCQ):
    """Another width for weight gradients: their errors stay in one layer, those of activation gradients go on."""

    weight_bits: int = 4

    def run(self, graph: TrainingGraph) -> bool:
        """Quantize, then change the width of what is quantized by channel."""
        changed = super().run(graph)
        for node in graph.calls(fqt.quantize_channels.default):
            zero, bits = node.args[2], len(node.args) - 1
            grid = zero.args[0]  # type: ignore[union-attr]
            grid.update_arg(2, self.weight_bits)  # type: ignore[union-attr]
            node.update_arg(bits, self.weight_bits)
        return changed


@dataclass(frozen=True)
class ReachSCQ(InsertSCQ):
    """Quantization over at most ``reach`` root mean squares of each group to either side of 0; the rest saturates."""

    reach: float = 8.0

    def _quantize(
        self,
        graph: TrainingGraph,
        node: fx.Node,
        axis: int,
        gradient: Any,
        scale: Any,
        statistics: dict[fx.Node, tuple[fx.Node, ...]],
    ) -> None:
        super()._quantize(graph, node, axis, gradient, scale, statistics)
        g, _, _, squares = statistics[gradient]
        samples, positions, channels = shape(g)
        grid: Any = node.args[0 if axis == 0 else 1].args[0].args[1].args[0]  # type: ignore[union-attr]
        emit = Emitter(graph, grid)
        if scale is not None:
            squares = emit(aten.mul.Tensor, squares, emit(aten.mul.Tensor, scale, scale))
        total = emit(aten.sum.dim_IntList, squares, [1] if axis == 0 else [0])
        mean = emit(aten.mul.Tensor, total, 1.0 / (positions * (channels if axis == 0 else samples)))
        bound = emit(aten.mul.Tensor, emit(aten.sqrt.default, mean), self.reach)
        low = emit(aten.maximum.default, grid.args[0], emit(aten.neg.default, bound))
        high = emit(aten.minimum.default, grid.args[1], bound)
        grid.args = (low, high, *grid.args[2:])


@dataclass(frozen=True)
class PositionSCQ(InsertSCQ):
    """Keep a share of the positions of each gradient, drawn by norm and weighted, and quantize what is left.

    Each is kept independently with probability ``min(1, c |g|)``, ``c`` such that about ``share`` of them are.

    Attributes:
        share: the share of the positions of the samples that are there.
    """

    share: float = 0.5

    def run(self, graph: TrainingGraph) -> bool:
        """Drop positions for both products alike, then quantize."""
        kept: dict[Any, fx.Node] = {}
        for node in products_of(graph, "input_grad"):
            product: Any = node.args[0]
            gradient, scale = product.args
            kept[gradient] = self._keep(graph, gradient, node)
            node.update_arg(0, Emitter(graph, product)(aten.mul.Tensor, kept[gradient], scale))
        for node in products_of(graph, "weight_grad"):
            gradient = node.args[1]
            node.update_arg(1, kept[gradient] if gradient in kept else self._keep(graph, gradient, node))
        return super().run(graph)

    def _keep(self, graph: TrainingGraph, gradient: Any, node: fx.Node) -> fx.Node:
        emit = Emitter(graph, gradient.next, layer=node.meta["layer"], phase="backward")
        g = samples_view(emit, graph, gradient)
        squares = emit(aten.sum.dim_IntList, emit(aten.mul.Tensor, g, g), [2], True)
        probability = emit(aten.sqrt.default, squares)
        for _ in range(5):  # what exceeds 1 is spread over the others
            mean = emit(aten.clamp_min.default, emit(aten.mean.dim, probability, [0, 1], True), 1e-30)
            scaled = emit(aten.mul.Tensor, emit(aten.div.Tensor, probability, mean), self.share)
            probability = emit(aten.clamp_max.default, scaled, 1.0)
        probability = emit(aten.clamp_min.default, probability, 1e-3)
        drawn = emit(aten.lt.Tensor, _uniform(emit, graph, node, shape(probability)), probability)
        weight = emit(aten.div.Tensor, emit(aten._to_copy.default, drawn, dtype=torch.float32), probability)
        result = emit(aten.view.default, emit(aten.mul.Tensor, g, weight), shape(gradient))
        result.meta["samples"] = shape(g)[0]
        return result


def _uniform(emit: Emitter, graph: TrainingGraph, node: fx.Node, extents: list[int]) -> fx.Node:
    """Uniform numbers from 14 random binary digits, each a dropout mask of its own stream."""
    digits = []
    for place in range(1, 15):
        key = random_key(emit, graph, 1000 * place + node.meta["record"].index, "dropout")
        mask = emit(fqt.dropout_mask.default, key, list(extents), 0.5)
        digits.append(emit(aten.mul.Tensor, emit(aten._to_copy.default, mask, dtype=torch.float32), 0.5**place))
    total = digits[0]
    for digit in digits[1:]:
        total = emit(aten.add.Tensor, total, digit)
    return total
