"""Compute products with weights of several bits plane by plane, where the target does not take them whole.

Before::

    %planes = aten.view(aten.cat([%p0, %p1]), [2, ...])                   # a weight of 2 bits
    %z      = fqt.level_conv2d(%x, %planes, ...)

After::

    %z0 = fqt.level_conv2d(%x, %p0, ...)
    %z1 = fqt.level_conv2d(%x, %p1, ...)
    %z  = %z0 + 2 * %z1

A level is a sum of signs, so this is exact. Processors that multiply bytes compute a product of codes and levels in the
time of one of codes and signs; with bits alone each plane takes as long as a weight of 1 bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.call import call_of, source_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, shape
from fqt_deploy.passes.lower_to_1bit import sum_of_planes
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
fqt = torch.ops.fqt

PRODUCTS = (fqt.binary_conv2d.default, fqt.level_conv2d.default, fqt.bitplane_conv2d_input_grad.default)
"""The ops that take the planes of a weight."""


@dataclass(frozen=True)
class SplitWeightPlanes(Pass):
    """Replace each product with several planes by one for each plane, and their sum.

    Attributes:
        whole: names of the products that the target computes as they are.
    """

    whole: tuple[str, ...] = ()

    name = "split-weight-planes"

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite, and return whether there was a product to split."""
        found = [node for node in products_of_planes(graph) if node.name not in self.whole]
        for node in found:
            _split(graph, node)
        return bool(found)


def products_of_planes(graph: TrainingGraph) -> list[fx.Node]:
    """The products with weights of several planes."""
    return [node for node in graph.calls(*PRODUCTS) if len(shape(call_of(node).w_bits)) == 4]


def _split(graph: TrainingGraph, node: fx.Node) -> None:
    emit = Emitter(graph, node)
    planes = call_of(source_of(call_of(node).w_bits)).tensors
    total = sum_of_planes(emit, [emit.again(node, w_bits=plane) for plane in planes])
    dtype = node.meta["val"].dtype
    replace(graph, node, total if dtype == torch.int32 else emit(aten._to_copy.default, total, dtype=dtype))
