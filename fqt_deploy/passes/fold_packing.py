"""Compute equal values once: what several layers or directions pack, quantize or measure is shared.

Before::

    %a = fqt.pack_signs(%x)          # for forward
    %b = fqt.pack_signs(%x)          # again, for the weight gradient

After::

    %a = fqt.pack_signs(%x)          # one pack, both users
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from fqt_deploy.core.graph import TrainingGraph, replace
from fqt_deploy.passes.pass_base import Pass


@dataclass(frozen=True)
class FoldPacking(Pass):
    """Common subexpression elimination: every op is a pure function of its operands, random ones included."""

    name = "fold-packing"

    def run(self, graph: TrainingGraph) -> bool:
        """Replace each later call by an equal earlier one."""
        seen: dict[Any, fx.Node] = {}
        changed = False
        for node in list(graph.graph.nodes):
            if node.op != "call_function":
                continue
            key = (node.target, _frozen(node.args), _frozen(node.kwargs))
            first = seen.setdefault(key, node)
            if first is not node:
                replace(graph, node, first)
                changed = True
        return changed


def _frozen(tree: Any) -> Any:
    """``tree`` as a hashable key; numbers of different type stay different."""
    if isinstance(tree, (list, tuple)):
        return tuple(_frozen(item) for item in tree)
    if isinstance(tree, dict):
        return tuple(sorted((k, _frozen(v)) for k, v in tree.items()))
    return tree if isinstance(tree, fx.Node) else (type(tree).__name__, tree)
