"""Draw dropout from the step's own counter-based generator.

Before::

    %y, %mask = aten.native_dropout(%x, 0.1, True)

After::

    %mask = fqt.dropout_mask(key, [N, C], 0.1);  %y = aten.where(%mask, %x * (1 / 0.9), 0)

``aten.bernoulli(%like, 0.9)``, which drops whole channels, becomes such a mask as well.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch

from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, shape
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
            x: Any = node.args[0]
            probability: Any = node.args[1]
            emit = Emitter(graph, node)
            key = random_key(emit, graph, position, "dropout")
            mask = emit(fqt.dropout_mask.default, key, shape(x), float(probability))
            scaled = emit(aten.mul.Tensor, x, 1.0 / (1.0 - probability) if probability < 1 else 0.0)
            results = [emit(aten.where.self, mask, scaled, emit(aten.scalar_tensor.default, 0.0)), mask]
            for user in list(node.users):
                assert user.target is operator.getitem
                user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
                graph.graph.erase_node(user)
            graph.graph.erase_node(node)
        draws = graph.calls(aten.bernoulli.p)
        for position, node in enumerate(draws, start=len(nodes)):
            emit = Emitter(graph, node)
            key = random_key(emit, graph, position, "dropout")
            mask = emit(fqt.dropout_mask.default, key, shape(node), 1.0 - float(node.args[1]))  # type: ignore[arg-type]
            replace(graph, node, emit(aten._to_copy.default, mask, dtype=node.meta["val"].dtype))
        return bool(nodes or draws)
