"""The kernels that an exported file calls are those of the compiled step: one grouping serves both."""

from __future__ import annotations

from fqt_deploy.codegen.kernel_grouping import Kernel, group_kernels
from fqt_deploy.codegen.to_relax import kernel_symbol
from fqt_deploy.core.graph import TrainingGraph
from fqt_deploy.export.kernel_calls import Group, KernelCalls, kernel_calls


def onnx_kernels(graph: TrainingGraph) -> KernelCalls:
    """The calls of ``graph``, lowered, in an ONNX file."""
    kernels = [step for step in group_kernels(graph) if isinstance(step, Kernel)]
    return kernel_calls(
        graph, [Group(kernel_symbol(k), k.root, k.members, k.leaves, tuple(k.numbers())) for k in kernels]
    )
