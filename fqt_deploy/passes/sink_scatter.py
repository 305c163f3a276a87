"""Move the scattering of kept samples behind everything that a pruned sample adds nothing to.

Before::

    %g     = fqt.scatter_rows(%kept, %slot)                  # N samples; those that were pruned are zero
    %h     = aten.gelu_backward(fqt.straight_through(%g, %x), %y)
    %bias  = aten.sum(aten.view(%h, ...), [0])
    %codes = fqt.quantize_samples(%h, %a, %chosen, ...)
    %sum   = aten.add(%h, %residual)

After::

    %h     = aten.gelu_backward(fqt.straight_through(%kept, gather_rows(%x, %index)), gather_rows(%y, %index))
    %bias  = aten.sum(aten.view(%h, ...), [0])               # over the K samples that were kept
    %codes = fqt.quantize_samples(%h, %a, fqt.gather_rows(%slot, %chosen), ...)
    %sum   = aten.add(fqt.scatter_rows(%h, %slot), %residual)

Where a sample's gradient is zero, it stays zero through products, views and the backward of activations, poolings and
normalizations of a sample. Sums over samples do not need it. Rounding draws other random numbers, because these are
counted by places.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.call import call_of, changed, source_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, shape
from fqt_deploy.ops.aten.creation import Constant
from fqt_deploy.ops.aten.spellings import SIZED
from fqt_deploy.ops.op import op_of
from fqt_deploy.ops.products.directions import WEIGHT_GRAD
from fqt_deploy.ops.sample_axes import alignment
from fqt_deploy.ops.traits import LEADING, Aligned, SampleAxis
from fqt_deploy.passes.batch_axis import gather_samples, resized, scatter_samples
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class SinkScatter(Pass):
    """Run backward on kept samples until something is added that all samples have."""

    name = "sink-scatter"
    exact = False

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite what reads the scattered results of ``insert-agp``."""
        return _Sinker(graph).run()


@dataclass(frozen=True)
class _Rows:
    """The kept samples of a value that is zero, or not needed, for the others.

    Attributes:
        value: with K samples.
        where: it has them.
        slot: [N] int32, each sample's place among them, or -1.
        index: [K] int32, their numbers among the N.
        can_scatter: whether the value is zero for the other samples; of codes only sums are formed.
    """

    value: fx.Node
    where: SampleAxis
    slot: fx.Node
    index: fx.Node
    can_scatter: bool = True

    def of(self, value: fx.Node, where: SampleAxis = LEADING, *, can_scatter: bool = True) -> _Rows:
        """The same samples of another value."""
        return _Rows(value, where, self.slot, self.index, self.can_scatter and can_scatter)


@dataclass
class _Sinker:
    """One sweep over a graph in its order."""

    graph: TrainingGraph
    rows: dict[fx.Node, _Rows] = field(default_factory=dict)

    def run(self) -> bool:
        """Sink every scatter as far as it goes; whether there was one that moved."""
        scatters = [n for n in self.graph.calls(fqt.scatter_rows.default) if n.meta.get("scatters") == "samples"]
        for node in list(self.graph.graph.nodes):
            if node in scatters:
                call = call_of(node)
                index = Emitter(self.graph, node).item(source_of(call.slot), 0)
                self.rows[node] = _Rows(call.x, LEADING, call.slot, index)
            elif node.op == "call_function" and any(a in self.rows for a in node.all_input_nodes):
                self._sink(node)
        for node in reversed([n for n in self.rows if n not in scatters]):
            if node.users:
                self._scatter(node)
            else:
                self.graph.graph.erase_node(node)
        return len(self.rows) > len(scatters)

    def _sink(self, node: fx.Node) -> None:
        """Rewrite ``node`` to run on kept samples, if a rule allows it."""
        kept = [self.rows[a] for a in node.all_input_nodes if a in self.rows]
        if len({k.slot for k in kept}) > 1:
            return
        if node.target is operator.getitem:
            self.rows[node] = kept[0].of(
                Emitter(self.graph, node).item(kept[0].value, call_of(node).index), kept[0].where
            )
            return
        if node.target in _QUANTIZERS:
            if source_of(node) in self.rows and kept[0].where == LEADING:
                _QUANTIZERS[node.target](self, node, kept[0])
            return
        aligned = alignment(node, {a: rows.where for a, rows in self.rows.items()}, self.graph.batch)
        if aligned is None:
            return
        if aligned.result is None:
            replace(self.graph, node, self._on_kept(node, kept[0], aligned))
        elif self._stays_zero(node) and _all_follow(node, aligned):
            self.rows[node] = kept[0].of(self._on_kept(node, kept[0], aligned), aligned.result)

    def _stays_zero(self, node: fx.Node) -> bool:
        """Whether the result is zero for samples for which operands are."""
        op = op_of(node)
        return op is not None and op.traits.zero.holds(call_of(node), lambda a: a in self.rows or is_zero(a))

    def _on_kept(self, node: fx.Node, rows: _Rows, aligned: Aligned) -> fx.Node:
        """A copy of ``node`` that reads the kept samples of its operands."""
        emit = Emitter(self.graph, node)
        (keep,) = shape(rows.index)

        def operand(a: fx.Node) -> fx.Node:
            if a in self.rows:
                return self.rows[a].value
            if a not in aligned.operands:
                return a
            return gather_samples(emit, a, aligned.operands[a], self.graph.batch, rows.index, keep)

        sizes = {}
        if node.target in SIZED and aligned.result is not None:
            sizes["size"] = resized(shape(node), aligned.result, self.graph.batch, keep)
        args, kwargs = changed(node, sizes)
        copy = emit(node.target, *fx.map_arg(args, operand), **fx.map_arg(kwargs, operand))
        copy.meta.update({k: node.meta[k] for k in ("record", "direction") if k in node.meta})
        return copy

    def _channels(self, node: fx.Node, rows: _Rows) -> None:
        """Codes of channels of the kept samples, where nothing but weight gradients are formed of them."""
        if _forms_weight_gradient(node):
            (gradient,) = (a for a in node.all_input_nodes if a in self.rows)
            copy = self._on_kept(node, rows, Aligned(LEADING, {gradient: LEADING}))
            self.rows[node] = rows.of(copy, can_scatter=False)

    def _position_statistics(self, node: fx.Node, rows: _Rows) -> None:
        """Statistics of the kept samples; those of the others are zero."""
        statistics = self._on_kept(node, rows, Aligned(LEADING, {call_of(node).g: LEADING}))
        emit = Emitter(self.graph, node)
        for item in list(node.users):
            self.rows[item] = rows.of(emit.item(statistics, call_of(item).index))

    def _quantize_samples(self, node: fx.Node, rows: _Rows) -> None:
        """Choose among the kept samples; one that was pruned has an empty range: its codes count nothing."""
        call = call_of(node)
        if call.index is None:
            return
        emit = Emitter(self.graph, node)
        places = emit(aten.clamp_min.default, emit(fqt.gather_rows.default, rows.slot, call.index), 0)
        replace(self.graph, node, emit.again(node, g=rows.value, index=places))

    def _scatter(self, node: fx.Node) -> None:
        """All samples of ``node`` for the users that need them."""
        rows = self.rows[node]
        assert rows.can_scatter, f"{node} is read by something else than a sum"
        emit = Emitter(self.graph, node)
        replace(self.graph, node, scatter_samples(emit, rows.value, rows.where, rows.slot, shape(rows.index)[0]))


_QUANTIZERS: dict[Any, Callable[[_Sinker, fx.Node, _Rows], None]] = {
    fqt.position_statistics.default: _Sinker._position_statistics,
    fqt.quantize_samples.default: _Sinker._quantize_samples,
    fqt.quantize_channels.default: _Sinker._channels,
    fqt.dequantize.default: _Sinker._channels,
}
"""What reads a gradient as [samples, positions, channels], and how it does on the kept samples."""


def _forms_weight_gradient(codes: fx.Node) -> bool:
    """Whether codes of channels are read by weight gradients only, through a dequantization and views."""
    return all(
        user.target in WEIGHT_GRAD
        or (user.target in (fqt.dequantize.default, aten.view.default) and _forms_weight_gradient(user))
        for user in codes.users
    )


def _all_follow(node: fx.Node, aligned: Aligned) -> bool:
    """Whether every result of ``node`` that something reads has the samples."""
    items = [call_of(user).index for user in node.users if user.target is operator.getitem]
    return all(index < aligned.results for index in items)


def is_zero(operand: Any) -> bool:
    """Whether an operand, a node or a number, is known to be zero everywhere."""
    if not isinstance(operand, fx.Node):
        return bool(operand == 0)
    op = op_of(operand)
    return op is not None and issubclass(op, Constant) and op.bound(operand.args, operand.kwargs).number() == 0
