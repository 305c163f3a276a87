"""Take out of weight gradients what batch normalization makes zero, so that quantization noise there ends.

Before::

    %gy, ... = fqt.batch_norm_backward(...)                               # backward of what follows the layer
    %gw      = fqt.latent_weight_grad(fqt.conv2d_weight_grad(%xb, %gy, ...), %w, False)

After::

    %gw      = fqt.latent_weight_grad(fqt.conv2d_weight_grad(%xb, %gy, ...), %w, True)

Batch normalization does not change when an output channel of the layer before it is scaled (but for its eps), so the
loss does not depend on ``alpha = mean |w|``, and the effective weight's gradient is orthogonal to ``sign(w)``, or to
the levels of a weight of several bits (``fqt.latent_level_grad``). With
fp32 gradients that holds by itself. With codes ``sum(dweff * sign(w))`` is noise alone, and counts many times: in the
latent weight's gradient it stands without the factor ``alpha`` that everything else carries.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.call import call_of, update
from fqt_deploy.core.graph import TrainingGraph, behind_views
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class ProjectWeightGrad(Pass):
    """Mark the latent weights whose layer's output is batch-normalized, and read by nothing else."""

    name = "project-weight-grad"
    exact = False

    def run(self, graph: TrainingGraph) -> bool:
        """Set ``scale_free`` of the gradient of every latent weight behind a batch normalization's backward."""
        changed = False
        for node in graph.calls(fqt.latent_weight_grad.default, fqt.latent_level_grad.default):
            product = _behind_layout(call_of(node).dweff)
            if _is_batch_norm_gradient(_behind_layout(call_of(product).g)):
                update(node, scale_free=True)
                changed = True
        return changed


def _is_batch_norm_gradient(gradient: fx.Node) -> bool:
    """Whether a gradient is that of a batch normalization's input alone; where others read it, it would be a sum."""
    if gradient.target is not operator.getitem:
        return False
    item = call_of(gradient)
    return bool(item.index == 0 and item.source.target is fqt.batch_norm_backward.default)


def _behind_layout(node: fx.Node) -> fx.Node:
    return behind_views(node, aten.permute.default)
