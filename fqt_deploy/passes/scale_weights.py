"""Make weights of binarized layers larger where they begin, so that their signs compute values of the same size.

The graph stays as it is; the initial value of each such weight is multiplied, for every output channel, by::

    rms(w) / mean |w|                # 1.25 for normally distributed weights

The signs of a layer's weights are scaled by ``mean |w|`` (algorithm: XNOR-Net scale), the best scale for each weight,
but one with which sums have a smaller variance than with the weights themselves, which have the scale ``rms(w)``. With
every layer values become a fifth smaller or more, until the last ones of a deep network hardly differ. In front of
batch normalization size does not matter, and those weights stay as they are; so do weights that anything else reads,
and weights of several bits, whose levels have nearly the size of what they stand for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import VIEWS, LayerRecord, TrainingGraph, behind_views
from fqt_deploy.passes.annotate_layers import products_of
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class ScaleWeights(Pass):
    """Multiply the initial weights of binarized layers that no batch normalization follows; a note says so."""

    name = "scale-weights"
    exact = False

    def run(self, graph: TrainingGraph) -> bool:
        """Scale each weight once, however often its layer is called."""
        parameters = {graph.placeholder(name) for name in graph.inputs if name.startswith("param/")}
        products = products_of(graph, "forward")
        normalized = {p.meta["record"].weight for p in products if _is_normalized(p, parameters)}
        scaled = [
            record
            for record in graph.layers
            if record.binarized
            and record.weight_bits == 1
            and record.weight not in normalized
            and _is_read_by_its_layer_alone(record, graph)
        ]
        for record in scaled:
            state = graph.state[record.weight]
            graph.state[record.weight] = replace(state, initial=scaled_weight(state.initial.detach(), record.turned))
        if scaled:
            graph.notes += (
                f"the weights of {len(scaled)} {'layers begin' if len(scaled) > 1 else 'layer begins'} larger than in "
                "the model, so that what their signs compute has the same size: no batch normalization follows",
            )
        return bool(scaled)


def scaled_weight(w: Tensor, turned: bool = False) -> Tensor:
    """``w``, [O, ...] float32, with its root mean square as the mean magnitude of each output channel.

    A channel of zeros stays one. A weight that is ``turned`` is [I, O].
    """
    axes = 0 if turned else tuple(range(1, w.dim()))
    size, mean = w.square().mean(axes, keepdim=True).sqrt(), w.abs().mean(axes, keepdim=True)
    return w * torch.where(mean > 0, size / mean, 1.0)


def _is_normalized(product: fx.Node, parameters: set[fx.Node]) -> bool:
    """Whether batch normalization alone reads the product in forward, behind a bias or not."""
    readers = [user for user in product.users if user.meta["phase"] == "forward"]
    return bool(readers) and all(
        reader.target is fqt.batch_norm.default
        or (
            (reader.target in (*VIEWS, aten.permute.default) or _adds_bias(reader, parameters))
            and _is_normalized(reader, parameters)
        )
        for reader in readers
    )


def _adds_bias(node: fx.Node, parameters: set[fx.Node]) -> bool:
    return node.target is aten.add.Tensor and any(
        isinstance(operand, fx.Node) and behind_views(operand, aten.expand.default) in parameters
        for operand in (call_of(node).self, call_of(node).other)
    )


def _is_read_by_its_layer_alone(record: LayerRecord, graph: TrainingGraph) -> bool:
    pending = [graph.placeholder(record.weight)]
    while pending:
        for user in pending.pop().users:
            if user.target in (*VIEWS, aten.permute.default):
                pending.append(user)
            elif user.meta.get("record") is not record:
                return False
    return True
