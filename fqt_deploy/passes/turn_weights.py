"""Let 1-bit layers whose weight lies [in, out] read it as [out, in].

Before::

    %z = fqt.linear_input_grad(%x, %w)                 # x @ w, as transformers' Conv1D has it
    %gx = fqt.linear(%gz, %w)
    %gw = fqt.linear_weight_grad(%gz, %x)              # [in, out]

After::

    %t = aten.permute(%w, [1, 0])
    %z = fqt.linear(%x, %t)
    %gx = fqt.linear_input_grad(%gz, %t)
    %gw = aten.permute(fqt.linear_weight_grad(%x, %gz), [1, 0])

Bits are packed along the axis that a product sums over, which has to be the last one. Layers in fp32 are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import Emitter, LayerRecord, TrainingGraph, replace
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class TurnWeights(Pass):
    """Rewrite the products of binarized layers whose records say ``turned``."""

    name = "turn-weights"

    def run(self, graph: TrainingGraph) -> bool:
        """Transpose the weight of each such layer once, and return whether there was one."""
        turned = [record for record in graph.layers if record.turned and record.binarized]
        for record in turned:
            _turn(graph, record)
        return bool(turned)


def _turn(graph: TrainingGraph, record: LayerRecord) -> None:
    products = [n for n in graph.graph.nodes if n.meta.get("record") is record]
    weight = Emitter(graph, products[0])(aten.permute.default, graph.placeholder(record.weight), [1, 0])
    for node in products:
        direction, call, emit = node.meta["direction"], call_of(node), Emitter(graph, node)
        if direction == "forward":
            turned = product = emit(fqt.linear.default, call.g, weight)
        elif direction == "input_grad":
            turned = product = emit(fqt.linear_input_grad.default, call.x, weight)
        else:
            product = emit(fqt.linear_weight_grad.default, call.g, call.x)
            turned = emit(aten.permute.default, product, [1, 0])
        product.meta.update(record=record, direction=direction)
        replace(graph, node, turned)
