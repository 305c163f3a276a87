"""Spell a variance as two means.

Before::

    %v = prims.var(%x, [2], 0)

After::

    %c = aten.sub(%x, aten.mean(%x, [2], True));  %v = aten.mean(aten.mul(%c, %c), [2])
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, shape
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
            centered = emit(aten.sub.Tensor, x, emit(aten.mean.dim, x, axes, True))
            variance = emit(aten.mean.dim, emit(aten.mul.Tensor, centered, centered), axes)
            if correction:
                count = 1
                for axis in axes:
                    count *= shape(x)[axis]
                variance = emit(aten.mul.Tensor, variance, count / max(count - float(correction), 1.0))
            replace(graph, node, variance)
        return bool(nodes)
