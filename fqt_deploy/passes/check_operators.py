"""Report every operator that has no lowering, all at once, before any work is done on the graph.

The graph is not changed.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.diagnostics import FqtError, SourceLocation
from fqt_deploy.core.graph import Stage, TrainingGraph
from fqt_deploy.ops.aten.indexing import INDEXING
from fqt_deploy.ops.aten.pointwise import POINTWISE
from fqt_deploy.ops.aten.reductions import REDUCTIONS
from fqt_deploy.passes.decompose_composites import spec_of
from fqt_deploy.passes.pass_base import Pass

_LOWERED_LATER = ("aten.native_dropout.default", "aten.bernoulli.p")


_TOO_WIDE_OR_NARROW = (torch.float64, torch.float16, torch.bfloat16)
"""Floating point types that no kernel computes in; only float32 is."""


def is_supported(node: fx.Node) -> bool:
    """Whether code generation, or a later pass, knows what to do with ``node``."""
    if node.op != "call_function" or node.target is operator.getitem:
        return True
    if _dtype(node) in _TOO_WIDE_OR_NARROW:
        return False
    if node.target in POINTWISE or node.target in REDUCTIONS or node.target in INDEXING:
        return True
    return spec_of(node) is not None or str(node.target) in _LOWERED_LATER


@dataclass(frozen=True)
class CheckOperators(Pass):
    """Raise one FQT201 error that lists every unsupported operator with its module and source line."""

    name = "check-operators"
    produces = Stage.NORMALIZED

    def run(self, graph: TrainingGraph) -> bool:
        """Check all nodes; the graph stays as it is."""
        unsupported = [n for n in graph.graph.nodes if not is_supported(n)]
        if unsupported:
            places = sorted({_describe(n) for n in unsupported})
            raise FqtError(
                f"{len(places)} operator call(s) of the model cannot be lowered:\n" + "\n".join(places),
                code="FQT201",
                node=unsupported[0],
                hint="rewrite these calls in supported operators (fqt-compile --list-ops), in float32",
            )
        return False


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None


def _describe(node: fx.Node) -> str:
    location, dtype = SourceLocation.of(node), _dtype(node)
    kind = f", {str(dtype).removeprefix('torch.')}" if dtype in _TOO_WIDE_OR_NARROW else ""
    where = f" at {location}" if location else ""
    module = node.meta.get("layer") or "<model>"
    return f"  {node.target} ({node.meta.get('phase', 'forward')}{kind}) in module {module}{where}"
