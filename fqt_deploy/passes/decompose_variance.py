"""Spell a variance as two means.

Before::

    %v = prims.var(%x, [2], 0)

After::

    %c = aten.sub(%x, aten.mean(%x, [2], True));  %v = aten.mean(aten.mul(%c, %c), [2])

Where the graph computes the mean of ``%x`` as well, as layer norm does, it is computed once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, shape
from fqt_deploy.ops.aten.reductions import reduced_axes
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
prims = torch.ops.prims


@dataclass(frozen=True)
class DecomposeVariance(Pass):
    """Two-pass variance: the layers that use it (layer norm) read short rows that stay in cache."""

    name = "decompose-variance"

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite every ``prims.var`` of ``graph``, and return whether there was one."""
        nodes = graph.calls(prims.var.default)
        for node in nodes:
            call = call_of(node)
            x, axes, correction = call.inp, call.dims, call.correction
            emit = Emitter(graph, node)
            mean = emit(aten.mean.dim, x, axes, True)
            _use(graph, mean, _means(graph, node, x, axes))
            centered = emit(aten.sub.Tensor, x, mean)
            variance = emit(aten.mean.dim, emit(aten.mul.Tensor, centered, centered), axes)
            if correction:
                count = math.prod(shape(x)[axis] for axis in axes)
                variance = emit(aten.mul.Tensor, variance, count / max(count - float(correction), 1.0))
            replace(graph, node, variance)
        return bool(nodes)


def _means(graph: TrainingGraph, variance: fx.Node, x: fx.Node, axes: list[int]) -> list[fx.Node]:
    """The quotients behind ``variance`` that are means of ``x`` over ``axes``, spelled as a sum and a division."""
    count, wanted = math.prod(shape(x)[axis] for axis in axes), sorted(axis % len(shape(x)) for axis in axes)
    found = []
    for node in graph.calls(aten.div.Tensor):
        call = call_of(node)
        total = call.self
        while isinstance(total, fx.Node) and total.target is aten.view.default:
            total = total.args[0]
        is_sum = isinstance(total, fx.Node) and total.target in (aten.sum.dim_IntList, prims.sum.default)
        if is_sum and call.other == count and total.args[0] is x and reduced_axes(call_of(total)) == wanted:
            found.append(node)
    return [node for node in found if variance < node]


def _use(graph: TrainingGraph, mean: fx.Node, others: list[fx.Node]) -> None:
    """Read ``mean`` in the place of ``others``, which have the same numbers in some shape."""
    for node in others:
        replace(graph, node, Emitter(graph, node)(aten.view.default, mean, shape(node)))
