"""Draw dropout from the step's own counter-based generator.

Before::

    %y, %mask = aten.native_dropout(%x, 0.1, True)

After::

    %mask = fqt.dropout_mask(key, [N, C], 0.1);  %y = aten.where(%mask, %x * (1 / 0.9), 0)

``aten.bernoulli(%like, 0.9)``, which drops whole channels, becomes such a mask as well, and ``aten.rand`` becomes
``fqt.uniform_numbers`` of the same generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, replace_results, shape
from fqt_deploy.passes.insert_scq import random_key
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class ReplaceDropout(Pass):
    """Give every dropout its own random stream: same seed and step, same mask, on every target."""

    name = "replace-dropout"
    exact = False

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite every ``native_dropout``; backward reads the same mask."""
        nodes = graph.calls(aten.native_dropout.default)
        for position, node in enumerate(nodes):
            call = call_of(node)
            x, probability = call.input, call.p
            emit = Emitter(graph, node)
            key = random_key(emit, graph, position, "dropout")
            mask = emit(fqt.dropout_mask.default, key, shape(x), float(probability))
            scaled = emit(aten.mul.Tensor, x, 1.0 / (1.0 - probability) if probability < 1 else 0.0)
            results = [emit(aten.where.self, mask, scaled, emit(aten.scalar_tensor.default, 0.0)), mask]
            replace_results(graph, node, results)
        draws = graph.calls(aten.bernoulli.p)
        for position, node in enumerate(draws, start=len(nodes)):
            emit = Emitter(graph, node)
            key = random_key(emit, graph, position, "dropout")
            mask = emit(fqt.dropout_mask.default, key, shape(node), 1.0 - float(call_of(node).p))
            replace(graph, node, emit(aten._to_copy.default, mask, dtype=node.meta["val"].dtype))
        numbers = graph.calls(aten.rand.default, aten.rand_like.default)
        for position, node in enumerate(numbers, start=len(nodes) + len(draws)):
            emit = Emitter(graph, node)
            key = random_key(emit, graph, position, "dropout")
            replace(graph, node, emit(fqt.uniform_numbers.default, key, shape(node)))
        return bool(nodes or draws or numbers)
