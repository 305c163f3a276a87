"""Which products with weights of several bits the target computes whole; the others are split into planes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from fqt_deploy.core.graph import TrainingGraph
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.passes.split_weight_planes import products_of_planes

if TYPE_CHECKING:
    from fqt_deploy.targets.base import Target


def taken_whole(graph: TrainingGraph, options: CompileOptions) -> tuple[str, ...]:
    """The names of products with weights of several planes that the target of ``options`` has a form for."""
    products = products_of_planes(graph)
    if not products:
        return ()
    from fqt_deploy.targets.registry import make_target  # takes seconds, and few models have such weights

    target = make_target(options.target, options.target_options)
    return tuple(node.name for node in products if target.takes_weight_levels and _has_form(node, target))


def _has_form(node: fx.Node, target: Target) -> bool:
    from fqt_deploy.codegen.kernel_function import kernel_function
    from fqt_deploy.codegen.kernel_grouping import Kernel

    return target.tunable_rule(kernel_function(Kernel(node, (), tuple(node.all_input_nodes)))) is not None
