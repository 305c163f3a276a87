"""Let batch normalization take its statistics over all processes that train together.

Before::

    %y, %m, %s, %rm, %rv = fqt.batch_norm(%x, %w, %b, ...)
    %gx, %gw, %gb = fqt.batch_norm_backward(%gy, %x, %w, %m, %s, False)

After::

    %y, %m, %s, %rm, %rv = fqt.batch_norm(%x, %w, %b, ..., synchronized=True)
    %gx, %gw, %gb = fqt.batch_norm_backward(%gy, %x, %w, %m, %s, False, synchronized=True)

Where these are decomposed, forward's moments and backward's sums pass through a node that the runtime replaces by what
all processes have, and what reads it waits: one message for each layer and direction. What is normalized by sample, as
instance normalization traces, stays with its process. Where samples meet otherwise in forward, as in a mean over the
batch, they would be those of one process beside statistics of all: that is refused. Batch normalization without running
statistics traces so, too.

``project-weight-grad`` still holds. With these statistics it is the loss of all processes that does not depend on the
scale of a layer's output channel, so the part of the weight's gradient along its signs is zero in the sum over
processes, not in each. Taking that part out is linear, so each process may do it before the gradients are averaged.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.call import call_of, update
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import TrainingGraph, shape
from fqt_deploy.ops.sample_axes import sample_axes
from fqt_deploy.ops.traits import SampleAxis
from fqt_deploy.passes.batch_axis import descendants
from fqt_deploy.passes.pass_base import Pass

fqt = torch.ops.fqt


@dataclass(frozen=True)
class SynchronizeBatchNorm(Pass):
    """Set ``synchronized`` of every batch normalization that goes over samples, forward and backward."""

    name = "synchronize-batch-norm"

    def run(self, graph: TrainingGraph) -> bool:
        """Mark them; FQT212 where samples meet otherwise, or it is not known where they are."""
        places = sample_axes(graph)
        _check_meetings(graph, places)
        changed = False
        for node in graph.calls(fqt.batch_norm.default, fqt.batch_norm_backward.default):
            x = call_of(node).x
            where = places.get(x)
            if where is None:
                raise FqtError(
                    "cannot synchronize a batch normalization whose input does not have its samples along one axis",
                    code="FQT212",
                    node=node,
                    hint="leave out what moves or mixes samples in front of it, or use --batch-norm local",
                )
            if where.axis < len(shape(x)) - 1:
                update(node, synchronized=True)
                changed = True
        return changed


def _check_meetings(graph: TrainingGraph, places: Mapping[fx.Node, SampleAxis]) -> None:
    """FQT212 if samples meet elsewhere in forward, as in a mean, and samples are computed from the result."""
    for node in graph.graph.nodes:
        known = node in places or node.target in (operator.getitem, fqt.batch_norm.default)
        meets = _is_forward(node) and not known
        if not meets or not any(operand in places for operand in node.all_input_nodes):
            continue
        if any(user in places and _is_forward(user) for user in descendants(graph, node)):
            raise FqtError(
                "cannot synchronize batch normalization in a model in which samples meet otherwise, as in a mean over "
                "the batch, or move along it, as in a part of it: these would be of each process",
                code="FQT212",
                node=node,
                hint="leave it out, take BatchNorm with track_running_stats=True, or use --batch-norm local",
            )


def _is_forward(node: fx.Node) -> bool:
    return node.op == "call_function" and node.meta.get("phase") == "forward"
