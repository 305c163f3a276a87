"""Where the values of a lowered graph have the rows, of samples or of tokens, of which some are kept.

Samples lie along an axis of a value, with groups of all outside of it or several rows of each inside. Tokens lie along
the leading axes together: [batch, tokens, ...], or [rows, ...], or [1, 1, rows, ...] as the operand of a product.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx

from fqt_deploy.core.call import call_of, source_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, shape
from fqt_deploy.ops.op import Kind, op_of
from fqt_deploy.ops.sample_axes import alignment, following
from fqt_deploy.ops.traits import LEADING, Layout, SampleAxis
from fqt_deploy.passes.batch_axis import gather_samples, resized

aten = torch.ops.aten
fqt = torch.ops.fqt

PACKED = (fqt.binary_conv2d.default, fqt.level_conv2d.default)
"""The 1-bit products of forward: their operands have the axes of what was packed."""
PACKING = (fqt.pack_signs.default, fqt.pack_levels.default)


class Rows(ABC):
    """Rows that values have, of which an index keeps some."""

    @abstractmethod
    def operands(self, value: fx.Node) -> set[fx.Node] | None:
        """The operands whose rows the same rows of ``value`` are computed from; None if it takes more than these."""

    @abstractmethod
    def taken(self, emit: Emitter, value: fx.Node, index: fx.Node) -> fx.Node:
        """The rows ``index`` of ``value``."""

    @abstractmethod
    def extents(self, value: fx.Node, keep: int) -> list[int]:
        """The shape of ``value`` with ``keep`` rows."""

    @abstractmethod
    def note(self, keep: int) -> dict[str, int]:
        """What values with ``keep`` rows tell of them."""


@dataclass
class SampleRows(Rows):
    """The samples of the batch.

    Attributes:
        graph: that values belong to.
    """

    graph: TrainingGraph

    @cached_property
    def axes(self) -> Mapping[fx.Node, SampleAxis]:
        """Where values have their samples, those of packed products included.

        A value that is computed from no sample, as the mask of a dropout is, has them where the one has that it meets,
        if there are elements for each.
        """
        found = dict.fromkeys(self.graph.batch_inputs(), SampleAxis(0))
        for node in self.graph.graph.nodes:
            if node.op != "call_function" or node.target is fqt.gather_rows.default:
                continue
            if node.target in PACKING or (node.target in PACKED and _keeps_axis(node, found)):
                where = found.get(next(iter(node.all_input_nodes)))
            else:
                where = following(node, found, self.graph.batch)
            if where is not None and (node.target not in PACKING or where.outer == 1):
                found[node] = where
                for operand in _as_long(node, where):
                    found.setdefault(operand, where)
        return found

    def operands(self, value: fx.Node) -> set[fx.Node] | None:
        """The operands that have samples, if the value has them."""
        return {a for a in value.all_input_nodes if a in self.axes} if value in self.axes else None

    def taken(self, emit: Emitter, value: fx.Node, index: fx.Node) -> fx.Node:
        """The samples ``index`` of a value that has them."""
        (keep,) = shape(index)
        return gather_samples(emit, value, self.axes[value], self.graph.batch, index, keep)

    def extents(self, value: fx.Node, keep: int) -> list[int]:
        """The shape with ``keep`` samples along their axis."""
        return resized(shape(value), self.axes[value], self.graph.batch, keep)

    def note(self, keep: int) -> dict[str, int]:
        """How many samples are kept."""
        return {"samples": keep}


def _as_long(node: fx.Node, where: SampleAxis) -> list[fx.Node]:
    """The operands of a call, if it computes each element from the same of them, with all samples of its result."""
    op = op_of(node)
    if op is None or op.traits.kind is not Kind.ELEMENTWISE or op.traits.layout is not Layout.ELEMENTWISE:
        return []
    extents = shape(node)
    operands = [a for a in node.all_input_nodes if len(shape(a)) == len(extents)]
    return [a for a in operands if shape(a)[where.axis] == extents[where.axis] > 1]


def _keeps_axis(node: fx.Node, found: Mapping[fx.Node, SampleAxis]) -> bool:
    """Whether a product has the samples where its operand has them: a window of several positions spans no samples."""
    where = found.get(node.all_input_nodes[0])
    return where is not None and (where.axis == 0 or is_plain(node))


def is_plain(product: fx.Node) -> bool:
    """Whether a product computes each position from the same position of its operand, as linear layers do."""
    call = call_of(product)
    return list(call.kernel) == list(call.stride) == [1, 1] and list(call.padding) == [0, 0]


@dataclass(frozen=True)
class TokenRows(Rows):
    """The tokens of all samples, one sample after another.

    Attributes:
        samples: how many there are.
        count: how many tokens there are of all samples.
    """

    samples: int
    count: int

    def operands(self, value: fx.Node) -> set[fx.Node] | None:
        """The operands that have the same tokens, by the definition of the op that computes ``value``."""
        lead = self._lead(value)
        if lead is None:
            return None
        if value.target is aten.view.default:
            source = source_of(value)
            return None if self._lead(source) is None else {source}
        if value.target in PACKING or (value.target in PACKED and is_plain(value)):
            source = value.all_input_nodes[0]
            return {source} if shape(source)[:lead] == shape(value)[:lead] else None
        op = op_of(value)
        if op is None or op.traits.kind is not Kind.ELEMENTWISE or value.target is fqt.gather_rows.default:
            return None
        return self._aligned(value, shape(value)[:lead])

    def _aligned(self, value: fx.Node, leading: list[int]) -> set[fx.Node] | None:
        """The operands with the axes ``leading`` of ``value``, if it has none with some of them or elsewhere."""
        lead, rank = len(leading), len(shape(value))
        operands = {a for a in value.all_input_nodes if len(shape(a)) == rank and shape(a)[:lead] == leading}
        for axis, extent in enumerate(leading):
            if extent == 1:
                continue
            places = dict.fromkeys(operands, SampleAxis(axis))
            found = alignment(value, places, extent)
            if found is None or found.result != SampleAxis(axis) or found.operands != places:
                return None
        return operands or None

    def taken(self, emit: Emitter, value: fx.Node, index: fx.Node) -> fx.Node:
        """The tokens ``index`` of a value whose leading axes hold all of them."""
        (keep,) = shape(index)
        flat = emit(aten.view.default, value, [self.count, 1, math.prod(shape(value)) // self.count])
        rows = gather_samples(emit, flat, LEADING, self.count, index, keep)
        return emit(aten.view.default, rows, self.extents(value, keep))

    def extents(self, value: fx.Node, keep: int) -> list[int]:
        """The shape with ``keep`` tokens in the leading axes: as many of each sample, or of all together."""
        extents, lead = shape(value), self._lead(value)
        assert lead is not None
        outer = next(axis for axis in range(lead) if extents[axis] > 1)
        if extents[outer] == self.count:
            return [*extents[:outer], keep, *extents[outer + 1 :]]
        return [*extents[: outer + 1], keep // self.samples, *[1] * (lead - outer - 2), *extents[lead:]]

    def note(self, keep: int) -> dict[str, int]:
        """How many tokens are kept of each sample."""
        return {"kept": keep // self.samples}

    def _lead(self, value: fx.Node) -> int | None:
        """How many leading axes hold the tokens, all in one axis or those of each sample apart."""
        extents = shape(value)
        lead = next((n for n in range(1, len(extents) + 1) if math.prod(extents[:n]) == self.count), None)
        if lead is None:
            return None
        outermost = next(extent for extent in extents[:lead] if extent > 1)
        return lead if outermost in (self.samples, self.count) else None


def rows_of(graph: TrainingGraph, count: int) -> Rows:
    """The rows that a value has ``count`` of: samples, or tokens."""
    return SampleRows(graph) if count == graph.batch else TokenRows(graph.batch, count)
