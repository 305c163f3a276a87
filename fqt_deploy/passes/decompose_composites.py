"""Spell composite ops in reductions and element-wise ops, each at its own place.

Before::

    %y, %m, %s, %rm, %rv = fqt.batch_norm(%x, %w, %b, ...)

After::

    %mean, %var = fqt.channel_moments(%x);  %y = (%x - %mean) * (%w * rsqrt(%var + eps)) + %b;  ...
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, replace_results
from fqt_deploy.ops.op import FqtOp, Kind, op_of
from fqt_deploy.passes.pass_base import Pass


@dataclass(frozen=True)
class DecomposeComposites(Pass):
    """Call ``decompose`` of every op of kind COMPOSITE."""

    name = "decompose-composites"

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite each composite call; several outputs are read through ``getitem``."""
        changed = False
        for node in list(graph.graph.nodes):
            op = op_of(node)
            if op is None or not issubclass(op, FqtOp) or op.traits.kind is not Kind.COMPOSITE:
                continue
            results = op.bound(node.args, node.kwargs).decompose(Emitter(graph, node))
            changed = True
            if isinstance(results, fx.Node):
                replace(graph, node, results)
                continue
            replace_results(graph, node, results)
        return changed
