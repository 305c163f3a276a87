"""Insert Sample Channel joint Quantization (SCQ) into the backward products of binarized layers.

Before::

    %gx = fqt.conv2d_input_grad(%gy * %a, %wb, ...)
    %gw = fqt.conv2d_weight_grad(%xb, %gy, ...)

After (paper: one scale per sample for activation gradients, one per output channel for weight gradients)::

    %lo, %hi, %sq = fqt.position_statistics(%g)                           # %g: %gy viewed as [N, P, C]
    %zero, %rscale, %scale = fqt.quantization_grid(amin(%lo * %a, 1), amax(%hi * %a, 1), b, grid)
    %codes = fqt.quantize_samples(%g, %a, None, %zero, %rscale, key, b)
    %gx = fqt.conv2d_input_grad(fqt.dequantize(%codes, %scale, %zero, 0), %wb, ...)
    ... and the same over channels for %gw, without %a: it commutes with a per-channel scale
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import fx

from fqt_deploy.core.call import call_of, update
from fqt_deploy.core.graph import Emitter, TrainingGraph, shape
from fqt_deploy.core.options import GRADIENT_BITS, Grid
from fqt_deploy.passes.annotate_layers import products_of
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
fqt = torch.ops.fqt

ROLES = {
    "samples": 0, "channels": 1, "select_samples": 2, "select_channels": 3, "select_once": 4, "dropout": 5,
    "select_tokens": 6, "moments": 7,
}  # fmt: skip
"""What a random stream is for: with seed, step and layer it names the stream."""


@dataclass(frozen=True)
class InsertSCQ(Pass):
    """Quantize each gradient twice, so that both products have their scales outside the contraction.

    Attributes:
        bits: width of one code.
        grid: ``minmax`` or ``zero``.
        token_bits: the same where tokens were selected.
    """

    bits: Annotated[int, GRADIENT_BITS] = 4
    grid: Grid = "zero"
    token_bits: Annotated[int, GRADIENT_BITS] = 4

    name = "insert-scq"
    exact = False

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite the gradient operand of every backward product of a binarized layer."""
        statistics: dict[fx.Node, tuple[fx.Node, ...]] = {}
        sample_side, channel_side = products_of(graph, "input_grad"), products_of(graph, "weight_grad")
        for node in sample_side:
            scaled = call_of(call_of(node).g)
            self._quantize(graph, node, 0, scaled.self, scaled.other, statistics)
        for node in channel_side:
            self._quantize(graph, node, 2, call_of(node).g, None, statistics)
        return bool(sample_side or channel_side)

    def _quantize(
        self,
        graph: TrainingGraph,
        node: fx.Node,
        axis: int,
        gradient: fx.Node,
        scale: fx.Node | None,
        statistics: dict[fx.Node, tuple[fx.Node, ...]],
    ) -> None:
        """Replace ``node``'s gradient operand by its dequantized codes; groups are indices of ``axis``."""
        emit = Emitter(graph, node)
        if gradient not in statistics:
            statistics[gradient] = _statistics(graph, gradient, node)
        g, low, high, _ = statistics[gradient]
        if scale is not None:
            low, high = emit(aten.mul.Tensor, low, scale), emit(aten.mul.Tensor, high, scale)
        reduced = [1] if axis == 0 else [0]
        low, high = emit(aten.amin.default, low, reduced), emit(aten.amax.default, high, reduced)
        bits = self.token_bits if graph.selection == "tokens" else self.bits
        grid = emit(fqt.quantization_grid.default, low, high, bits, self.grid)
        zero, reciprocal, step = (emit.item(grid, i) for i in range(3))
        key = random_key(emit, graph, node.meta["record"].index, "samples" if axis == 0 else "channels")
        if axis == 0:
            codes = emit(fqt.quantize_samples.default, g, scale, None, zero, reciprocal, key, bits)
        else:
            codes = emit(fqt.quantize_channels.default, g, None, zero, reciprocal, key, bits)
        values = emit(fqt.dequantize.default, codes, step, zero, axis)
        update(node, g=emit(aten.view.default, values, shape(gradient)))


def random_key(emit: Emitter, graph: TrainingGraph, layer: int, role: str) -> fx.Node:
    """The [2] int32 key of one random stream."""
    seed, step = graph.placeholder("seed"), graph.placeholder("step")
    return emit(fqt.stream_key.default, seed, step, layer, ROLES[role])


def samples_view(emit: Emitter, graph: TrainingGraph, gradient: fx.Node) -> fx.Node:
    """``gradient`` as [samples, positions, channels]; its leading axis is the batch, or the batch times rows."""
    extents = shape(gradient)
    channels, total = extents[-1], 1
    for extent in extents:
        total *= extent
    samples = gradient.meta.get("samples", graph.batch)  # fewer behind a selection
    return emit(aten.view.default, gradient, [samples, total // (samples * channels), channels])


def _statistics(graph: TrainingGraph, gradient: fx.Node, user: fx.Node) -> tuple[fx.Node, ...]:
    """[N, P, C] view, and minimum, maximum and sum of squares over positions, right behind the gradient."""
    emit = Emitter(graph, gradient.next, layer=user.meta["layer"], phase="backward")
    g = samples_view(emit, graph, gradient)
    result = emit(fqt.position_statistics.default, g)
    return g, emit.item(result, 0), emit.item(result, 1), emit.item(result, 2)
