"""Let the exchange of a pruned weight gradient know the channels that were kept: the other rows are zero.

Before::

    %index, %slot, %k = fqt.select_sampled(%score, %key, 128)
    %g = fqt.dequantize_weight_grad(%product, %scale, %zero, %sums, %slot)         # [512, 4608]
    %e = fqt.exchange_gradient(aten.mul.Tensor(%g, %alpha), %share)                # sends all rows

After::

    %e = fqt.exchange_kept_rows(aten.mul.Tensor(%g, %alpha), %share, %index)       # may send 128 rows and their numbers

That rows stay zero on the way to the exchange is known from the traits of the ops in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.call import call_of, source_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, shape
from fqt_deploy.ops.op import op_of
from fqt_deploy.ops.sample_axes import alignment
from fqt_deploy.ops.traits import LEADING
from fqt_deploy.passes.pass_base import Pass

fqt = torch.ops.fqt

_SCATTERED = (fqt.dequantize_weight_grad.default, fqt.scatter_rows.default)
"""What has zeros in the rows whose slot is negative."""


@dataclass(frozen=True)
class ExchangeKeptRows(Pass):
    """Replace ``exchange_gradient`` by ``exchange_kept_rows`` where a selection of channels leaves rows zero."""

    name = "exchange-kept-rows"

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite the exchanges of gradients that are pruned along their rows."""
        exchanges = graph.calls(fqt.exchange_gradient.default)
        if not exchanges:
            return False
        pruned = _pruned_rows(graph)
        changed = False
        for node in exchanges:
            grad, share = call_of(node).grad, call_of(node).share
            slot = pruned.get(grad)
            if slot is None or len(shape(grad)) != 2:
                continue
            emit = Emitter(graph, node)
            index = emit.item(source_of(slot), 0)
            replace(graph, node, emit(fqt.exchange_kept_rows.default, grad, share, index))
            changed = True
        return changed


def _pruned_rows(graph: TrainingGraph) -> dict[fx.Node, fx.Node]:
    """The slots of the kept rows of each value that is zero in all others, along its leading axis."""
    found: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.target in _SCATTERED:
            slot = call_of(node).slot
            if slot is not None and len(slot.all_input_nodes) == 1:  # a result of a selection
                found[node] = slot
        elif node.op == "call_function" and (slot := _inherited(node, found)) is not None:
            found[node] = slot
    return found


def _inherited(node: fx.Node, found: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """The slots of the rows that ``node`` keeps zero, those of its operands; None if it has others."""
    op = op_of(node)
    slots = {found[operand] for operand in node.all_input_nodes if operand in found}
    if op is None or len(slots) != 1:
        return None
    (slot,) = slots
    (rows,) = shape(slot)
    aligned = alignment(node, dict.fromkeys((o for o in node.all_input_nodes if o in found), LEADING), rows)
    if aligned is None or aligned.result != LEADING or shape(node)[0] != rows:
        return None

    def is_zero(operand: Any) -> bool:
        return operand in found if isinstance(operand, fx.Node) else operand == 0

    return slot if op.traits.zero.holds(call_of(node), is_zero) else None
