"""Spell composite ops in reductions and element-wise ops, each at its own place.

Before::

    %y, %m, %s, %rm, %rv = fqt.batch_norm(%x, %w, %b, ...)

After::

    %mean, %var = fqt.channel_moments(%x);  %y = (%x - %mean) * (%w * rsqrt(%var + eps)) + %b;  ...
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch import fx

from fqt_deploy.core.graph import Emitter, TrainingGraph, replace
from fqt_deploy.ops.spec import OPS, OpKind, OpSpec
from fqt_deploy.passes.pass_base import Pass


def spec_of(node: fx.Node) -> OpSpec | None:
    """The ``OpSpec`` behind a node that calls an ``fqt`` op, else None."""
    target = node.target
    if node.op != "call_function" or getattr(target, "namespace", "") != "fqt":
        return None
    return OPS[target._schema.name.removeprefix("fqt::")]  # type: ignore[union-attr]


@dataclass(frozen=True)
class DecomposeComposites(Pass):
    """Call ``OpSpec.decompose`` of every op of kind COMPOSITE."""

    name = "decompose-composites"

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite each composite call; several outputs are read through ``getitem``."""
        changed = False
        for node in list(graph.graph.nodes):
            spec = spec_of(node)
            if spec is None or spec.kind is not OpKind.COMPOSITE:
                continue
            assert spec.decompose is not None
            results = spec.decompose(Emitter(graph, node), *node.args)
            changed = True
            if isinstance(results, fx.Node):
                replace(graph, node, results)
                continue
            for user in list(node.users):
                assert user.target is operator.getitem
                user.replace_all_uses_with(results[user.args[1]])
                graph.graph.erase_node(user)
            graph.graph.erase_node(node)
        return changed
