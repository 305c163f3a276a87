"""Report every operator that has no lowering, all at once, before any work is done on the graph.

The graph is not changed.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch import fx

from fqt_deploy.core.diagnostics import FqtError, SourceLocation
from fqt_deploy.core.graph import TrainingGraph
from fqt_deploy.ops.aten_indexing import INDEXING
from fqt_deploy.ops.aten_pointwise import POINTWISE
from fqt_deploy.ops.aten_reductions import REDUCTIONS
from fqt_deploy.passes.decompose_composites import spec_of
from fqt_deploy.passes.pass_base import Pass

_LOWERED_LATER = ("aten.native_dropout.default",)


def is_supported(node: fx.Node) -> bool:
    """Whether code generation, or a later pass, knows what to do with ``node``."""
    if node.op != "call_function" or node.target is operator.getitem:
        return True
    if node.target in POINTWISE or node.target in REDUCTIONS or node.target in INDEXING:
        return True
    return spec_of(node) is not None or str(node.target) in _LOWERED_LATER


@dataclass(frozen=True)
class CheckOperators(Pass):
    """Raise one FQT201 error that lists every unsupported operator with its module and source line."""

    name = "check-operators"

    def run(self, graph: TrainingGraph) -> bool:
        """Check all nodes; the graph stays as it is."""
        unsupported = [n for n in graph.graph.nodes if not is_supported(n)]
        if unsupported:
            places = sorted({_describe(n) for n in unsupported})
            raise FqtError(
                f"{len(places)} operator call(s) of the model cannot be lowered:\n" + "\n".join(places),
                code="FQT201",
                node=unsupported[0],
                hint="rewrite these calls in supported operators (fqt-compile --list-ops)",
            )
        return False


def _describe(node: fx.Node) -> str:
    location = SourceLocation.of(node)
    where = f" at {location}" if location else ""
    return f"  {node.target} ({node.meta.get('phase', 'forward')}) in module {node.meta.get('layer') or '<model>'}{where}"
