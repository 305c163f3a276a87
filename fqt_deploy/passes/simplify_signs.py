"""Take signs before activations that keep them.

Before::

    %a = aten.gelu(%x);  %bits = fqt.pack_signs(aten.view(%a, ...))

After::

    %bits = fqt.pack_signs(aten.view(%x, ...))

``relu(x) > 0`` exactly where ``x > 0``. So is ``gelu(x)`` but for denormal numbers, whose half is zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.call import call_of, source_of, update
from fqt_deploy.core.graph import Emitter, TrainingGraph, shape
from fqt_deploy.ops.op import op_of
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class SimplifySigns(Pass):
    """Skip activations, through views, between a value and the packing of its signs."""

    name = "simplify-signs"

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite the operand of every ``pack_signs``."""
        changed = False
        for node in graph.calls(fqt.pack_signs.default):
            operand = source_of(node)
            source = _before_activations(operand)
            if source is not operand:
                emit = Emitter(graph, node)
                extents = shape(operand)
                update(node, x=source if shape(source) == extents else emit(aten.view.default, source, extents))
                changed = True
        return changed


def _before_activations(node: fx.Node) -> fx.Node:
    """What ``node`` has the signs of; ``node`` itself if there is no activation behind its views."""
    found, current = node, node
    while True:
        source = _same_signs(current)
        if source is not None:
            found = current = source
        elif current.target is aten.view.default:
            current = source_of(current)
        else:
            return found


def _same_signs(node: fx.Node) -> fx.Node | None:
    """The operand that is above 0 exactly where the result is, if the definition names one."""
    op = op_of(node)
    if op is None or op.traits.sign.same_as is None:
        return None
    operand = getattr(call_of(node), op.traits.sign.same_as)
    return operand if isinstance(operand, fx.Node) else None
