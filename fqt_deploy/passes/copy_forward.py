"""Copies of what forward computes, for backward: of kept rows, or of all, right before they are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, shape
from fqt_deploy.ops.aten.spellings import SIZED
from fqt_deploy.ops.op import Kind, op_of
from fqt_deploy.passes.kept_rows import PACKING, Rows

aten = torch.ops.aten
fqt = torch.ops.fqt

_OWN = ("layer", "stack_trace", "seq_nr")
"""What a copy tells of its origin as the value that is copied does."""


@dataclass
class CopyForward:
    """Lets backward read copies of values.

    Attributes:
        graph: being rewritten.
        rows: the rows that a value has so many of.
        origins: the one large value from which each value of forward is computed element by element.
        computed: the products, and sums of them, that are computed again; all that they are computed from is kept.
    """

    graph: TrainingGraph
    rows: Callable[[int], Rows]
    origins: Mapping[fx.Node, fx.Node]
    computed: Collection[fx.Node]
    _copies: dict[tuple[fx.Node, fx.Node | None], fx.Node] = field(default_factory=dict)
    _depends: dict[fx.Node, bool] = field(default_factory=dict)

    def replace_gather(self, gather: fx.Node) -> None:
        """Compute the rows that ``gather`` takes instead of taking them."""
        call = call_of(gather)
        rows = self.rows(shape(call.x)[0])
        replace(self.graph, gather, self._kept(rows, call.x, call.index, gather))

    def replace_operands(self, reader: fx.Node) -> None:
        """Compute again, of all rows, what ``reader`` reads."""
        for operand in reader.all_input_nodes:
            if self._is_computed(operand):
                reader.replace_input_with(operand, self._whole(operand, reader))

    def _kept(self, rows: Rows, value: fx.Node, index: fx.Node, anchor: fx.Node) -> fx.Node:
        """The rows ``index`` of ``value``, computed before ``anchor`` unless an earlier reader has them."""
        if (value, index) not in self._copies:
            self._copies[value, index] = self._copy_of_rows(rows, value, index, anchor)
        return self._copies[value, index]

    def _copy_of_rows(self, rows: Rows, value: fx.Node, index: fx.Node, anchor: fx.Node) -> fx.Node:
        (keep,) = shape(index)
        operands = rows.operands(value) if self._is_computed(value) else None
        if operands is None:
            return self._taken(rows, value, index, anchor)
        own = {
            a: self._kept(rows, a, index, anchor) if a in operands else self._whole(a, anchor)
            for a in value.all_input_nodes
        }
        emit = self._emitter(value, anchor, **rows.note(keep))
        if value.target in SIZED:
            return emit(value.target, *own.values(), rows.extents(value, keep))
        args, kwargs = fx.map_arg((value.args, value.kwargs), own.__getitem__)
        return emit(value.target, *args, **kwargs)

    def _taken(self, rows: Rows, value: fx.Node, index: fx.Node, anchor: fx.Node) -> fx.Node:
        """The rows ``index`` out of all of ``value``; of codes, for all that takes the same, before the first of it."""
        (keep,) = shape(index)
        source = self._whole(value, anchor)
        others = [g for g in _gathers_of(source) if call_of(g).index is index] if source.target in PACKING else []
        taken = rows.taken(self._emitter(value, min([anchor, *others]), **rows.note(keep)), source, index)
        for other in others:
            replace(self.graph, other, Emitter(self.graph, other)(aten.view.default, taken, shape(other)))
        return taken

    def _whole(self, value: fx.Node, anchor: fx.Node) -> fx.Node:
        """All rows of ``value``: computed before ``anchor``, unless they are kept or an earlier reader has them."""
        if not self._is_computed(value):
            return value
        if (value, None) not in self._copies:
            own = {a: self._whole(a, anchor) for a in value.all_input_nodes}
            args, kwargs = fx.map_arg((value.args, value.kwargs), own.__getitem__)
            self._copies[value, None] = self._emitter(value, anchor)(value.target, *args, **kwargs)
        return self._copies[value, None]

    def _emitter(self, value: fx.Node, anchor: fx.Node, **overrides: int) -> Emitter:
        own = {name: value.meta[name] for name in _OWN if name in value.meta}
        return Emitter(self.graph, anchor, **own, phase="backward", role="rematerialize", **overrides)

    def _is_computed(self, value: fx.Node) -> bool:
        """Whether ``value`` is computed from a product that is computed again."""
        if value not in self._depends:
            if is_forward(value):
                found = self.origins[value] in self.computed
            else:
                found = is_elementwise(value) and any(map(self._is_computed, value.all_input_nodes))
            self._depends[value] = found
        return self._depends[value]


def _gathers_of(value: fx.Node) -> Iterator[fx.Node]:
    """What gathers rows of ``value``, or of a view of it."""
    for user in value.users:
        if user.target is fqt.gather_rows.default and call_of(user).x is value:
            yield user
        elif user.target is aten.view.default:
            yield from _gathers_of(user)


def is_forward(node: fx.Node) -> bool:
    """Whether forward calls ``node``."""
    return node.op == "call_function" and node.meta.get("phase") == "forward"


def is_elementwise(node: fx.Node) -> bool:
    """Whether ``node`` is cheap to compute again wherever it is read."""
    op = op_of(node)
    return op is not None and op.traits.kind is Kind.ELEMENTWISE and node.target is not fqt.gather_rows.default
