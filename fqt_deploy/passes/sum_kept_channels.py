"""Sum products with a pruned weight gradient over the kept channels alone: the others are zero.

Before::

    %index, %slot, %k = fqt.select_sampled(%score, %key, 128)
    %g     = fqt.dequantize_weight_grad(%product, %scale, %zero, %sums, %slot)     # [512, 4608]
    %total = aten.sum.dim_IntList(aten.mul.Tensor(%g, %sign), [1])                 # reads all of %sign

After::

    %kept  = fqt.dequantize_weight_grad(%product, %scale, %zero, %sums, None)      # [128, 4608]
    %rows  = aten.sum.dim_IntList(aten.mul.Tensor(%kept, fqt.gather_rows(%sign, %index)), [1])
    %total = fqt.scatter_rows(%rows, %slot)

The sum is that of the weight scale's gradient: with one channel in four kept, it reads a quarter of the weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.call import call_of, source_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, shape
from fqt_deploy.ops.aten.reductions import reduced_axes
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class SumKeptChannels(Pass):
    """Rewrite sums, within each channel, of a dequantized weight gradient times a tensor of its shape."""

    name = "sum-kept-channels"

    def run(self, graph: TrainingGraph) -> bool:
        """Operands that nothing else reads are left to the clean-up after the pass."""
        changed = False
        for node in graph.calls(aten.sum.dim_IntList):
            found = _pruned_factor(node)
            if found is None:
                continue
            gradient, other = found
            slot, emit = call_of(gradient).slot, Emitter(graph, node)
            kept = emit.again(gradient, slot=None)
            rows = emit(fqt.gather_rows.default, other, _index_beside(slot, emit))
            sums = emit.again(node, self=emit(aten.mul.Tensor, kept, rows))
            replace(graph, node, emit(fqt.scatter_rows.default, sums, slot))
            changed = True
        return changed


def _pruned_factor(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The pruned weight gradient of a sum of products, and the other factor; None if it is no such sum."""
    product = source_of(node)
    if product.target is not aten.mul.Tensor or 0 in reduced_axes(call_of(node)):
        return None
    factors = call_of(product)
    for gradient, other in ((factors.self, factors.other), (factors.other, factors.self)):
        if not isinstance(gradient, fx.Node) or not isinstance(other, fx.Node):
            return None
        if gradient.target is fqt.dequantize_weight_grad.default and call_of(gradient).slot is not None:
            return (gradient, other) if shape(other) == shape(gradient) else None
    return None


def _index_beside(slot: fx.Node, emit: Emitter) -> fx.Node:
    """The numbers of the kept channels, from the selection that gave their slots."""
    return emit.item(call_of(slot).source, 0)
