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
from fqt_deploy.ops.aten.aten_op import dropped_arguments
from fqt_deploy.ops.aten.replaced_layers import RANDOM
from fqt_deploy.ops.lib.dtypes import dtype_name
from fqt_deploy.ops.op import op_of
from fqt_deploy.passes.pass_base import Pass, rewrite_each

_TOO_WIDE_OR_NARROW = (torch.float64, torch.float16, torch.bfloat16)
"""Floating point types that no kernel computes in; only float32 is."""


def is_supported(node: fx.Node) -> bool:
    """Whether code generation, or a later pass, knows what to do with ``node``."""
    if node.op != "call_function" or node.target is operator.getitem:
        return True
    if _dtype(node) in _TOO_WIDE_OR_NARROW:
        return False
    if node.target in RANDOM:
        return True
    return op_of(node) is not None and not dropped_arguments(node)


@dataclass(frozen=True)
class CheckOperators(Pass):
    """Refuse every unsupported operator, each with its module and source line: an FQT201 error."""

    name = "check-operators"
    settles = True
    produces = Stage.NORMALIZED

    def run(self, graph: TrainingGraph) -> bool:
        """Check all nodes but those refused before; the graph stays as it is."""
        first: dict[tuple[str, ...], fx.Node] = {}
        for node in graph.graph.nodes:
            if node not in graph.refused and not is_supported(node):
                first.setdefault(_place(node), node)
        rewrite_each(graph, first.values(), _refuse)
        return False


def _place(node: fx.Node) -> tuple[str, ...]:
    """What is told once: an operator of one line and module; its derivative is often the operator again."""
    return str(node.target), str(_dtype(node)), str(node.meta.get("layer")), str(SourceLocation.of(node))


_EXPERTS = "let transformers compute experts in products of fixed sizes: model.set_experts_implementation('batched_mm')"
_FOURIER = (
    "compute spectrograms in front of the step, or write the Fourier transform as products with its real and its "
    "imaginary matrix"
)
_INSTEAD = {
    "aten.histc": f"count with one_hot(x, bins).sum(0); {_EXPERTS}",
    "transformers.grouped_mm_fallback": _EXPERTS,
    "transformers.grouped_mm_fallback_backward": _EXPERTS,
    "aten._grouped_mm": _EXPERTS,
    "aten._fft_c2c": _FOURIER,
    "aten._fft_r2c": _FOURIER,
    "aten.linalg_solve_triangular": "where the covariance is diagonal, write Independent(Normal(mean, deviation), 1) "
    "in the place of MultivariateNormal",
}
"""The text of a hint by the name of an operator, without its overload."""


def _refuse(node: fx.Node) -> None:
    dtype, dropped = _dtype(node), dropped_arguments(node)
    wrong = [dtype_name(dtype)] if dtype in _TOO_WIDE_OR_NARROW else []
    usual = "write it in supported operators; fqt-compile --list-ops lists them"
    hint = _INSTEAD.get(str(node.target).rpartition(".")[0], usual)
    if wrong or dropped:
        hint = (
            "compute it in float32: no autocast, .half() or .double()"
            if wrong
            else f"write it without {', '.join(dropped)}"
        )
    where = ", ".join([node.meta.get("phase", "forward"), *wrong, *dropped])
    message = f"{node.target} ({where}) cannot be lowered"
    raise FqtError(message, code="FQT201", node=node, hint=hint)


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None
