"""ATen ops that read, write or add at places that tensors of integers name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.core.call import Call
from fqt_deploy.ops.aten.aten_op import AtenOp, aten, define_aten, extents
from fqt_deploy.ops.aten.samples import MIXED, PLACES, WIDE, call, random
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import OnnxWriter
from fqt_deploy.ops.lib.safe_index import element_or_nothing, inside, onnx_not_negative, row_or_none, wrapped
from fqt_deploy.ops.lib.scatter import ScatterAxes, scatter, scatter_onnx
from fqt_deploy.ops.op import Cost, Kind, Operand
from fqt_deploy.ops.traits import (
    ANY_SIGN,
    Aligned,
    AxisOf,
    Layout,
    Nan,
    SampleAxis,
    keeps_sign,
    moved,
    only,
    zero_with_all,
    zero_with_any,
)

_ROWS = torch.tensor([2, 0, -1, 1, 0])
_ROW_COLUMN = (torch.tensor([[0], [1], [1]]), torch.tensor([[2, 0, 1, 2]]))


def indexed_axes(indices: Sequence[Any]) -> list[int]:
    """The axes that ``index.Tensor`` and its like index; capture makes them neighbours."""
    return [axis for axis, index in enumerate(indices) if index is not None]


def _sources(indices: Sequence[Any]) -> list[int]:
    """The shape that the index tensors broadcast to."""
    shapes = [tuple(extents(index)) for index in indices if index is not None]
    return list(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def _at(index: te.Tensor, position: Sequence[Any]) -> Any:
    aligned = position[len(position) - len(index.shape) :]
    return index[tuple(0 if int(d) == 1 else p for d, p in zip(index.shape, aligned, strict=True))]


def _place_onnx(graph: OnnxWriter, indices: Sequence[Any], size: Sequence[int]) -> str:
    """The row of each source among all indexed axes, as int64; past the last one if any index is out of range."""
    axes, total = indexed_axes(indices), None
    outside = graph.constant(math.prod(size[axis] for axis in axes), "int64")
    for axis in axes:
        index, extent = graph.cast(indices[axis], "int64"), graph.constant(size[axis], "int64")
        negative = graph("Less", index, graph.constant(0, "int64"))
        index = graph("Where", negative, graph("Add", index, extent), index)
        clipped = graph("Clip", index, graph.constant(0, "int64"), graph.constant(max(size[axis] - 1, 0), "int64"))
        index = graph("Where", graph("Equal", clipped, index), index, outside)
        total = index if total is None else graph("Add", index, graph("Mul", total, extent))
    assert total is not None
    return graph("Expand", total, graph.constant(_sources(indices), "int64"))


def _rank_of_sources(call: Call) -> int:
    return len(_sources([index if index is None else index.meta["val"] for index in call.indices]))


def _indexed(call: Call, axis_of: AxisOf, _batch: int) -> Aligned | None:
    """Samples stay where they are if no tensor indexes their axis; those of index tensors become the result's."""
    axes, sources = indexed_axes(call.indices), _rank_of_sources(call)
    nodes = [index for index in call.indices if isinstance(index, fx.Node)]
    if axis_of(call.self) is None:
        place = only(axis_of(node) for node in nodes)
        if place is None or any(len(n.meta["val"].shape) != sources or axis_of(n) is None for n in nodes):
            return None
        return Aligned(SampleAxis(axes[0] + place.axis, place.outer), dict.fromkeys(nodes, place))
    if any(axis_of(node) is not None for node in nodes):
        return None

    def after(axis: int) -> int | None:
        if axis in axes:
            return None
        return axis if axis < axes[0] else axis + sources - len(axes)

    return moved(call, axis_of, after)


@define_aten(
    aten.index.Tensor, kind=Kind.ELEMENTWISE, batch=_indexed, zero=zero_with_any("self"), layout=Layout.OPAQUE,
    sign=keeps_sign("self"), nan=Nan.KEPT,
    samples=[
        call(MIXED, [None, _ROWS]), call(WIDE, [_ROWS.int()]), call(WIDE, [None, *_ROW_COLUMN]),
        call(WIDE, [*_ROW_COLUMN, None]), call(MIXED, list(_ROW_COLUMN)), call(WIDE, [None, None, PLACES]),
    ],
)  # fmt: skip
class Index(AtenOp):
    """Elements at tensors of integers, which are broadcast; they index neighbouring axes."""

    x: Operand
    indices: list[Operand]

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Each element from where its integers say."""
        axes, size, sources = indexed_axes(self.indices), extents(self.x), len(_sources(self.indices))
        first = axes[0]

        def at(*i: Any) -> Any:
            own = i[first : first + sources]
            indices = [(_at(self.indices[axis], own), size[axis]) for axis in axes]
            places = [wrapped(index, extent) for index, extent in indices]
            conditions = [holds for index, extent in indices for holds in inside(index, extent, wraps=True)]
            return element_or_nothing(conditions, self.x[(*i[:first], *places, *i[first + sources :])])

        return te.compute(extents(result), at, name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """A gather of rows of all indexed axes."""
        axes, size = indexed_axes(self.indices), extents(self.x)
        rows = [*size[: axes[0]], math.prod(size[a] for a in axes), *size[axes[-1] + 1 :]]
        value = graph("Reshape", self.x.name, graph.constant(rows, "int64"))
        return graph("Gather", value, _place_onnx(graph, self.indices, size), axis=axes[0])


def _put(call: Call, axis_of: AxisOf, _batch: int) -> Aligned | None:
    """Samples stay where they are if no tensor indexes their axis, and the values have theirs there, or are shared."""
    axes, where = indexed_axes(call.indices), axis_of(call.self)
    if where is None or where.axis in axes or any(axis_of(i) is not None for i in call.indices if i is not None):
        return None
    axis = where.axis
    values, more = call.values()["values"], _rank_of_sources(call) - len(axes)
    shape, rank = extents(values.meta["val"]), len(extents(call.self.meta["val"]))
    place = axis + (more if axis >= axes[0] else 0) - (rank + more - len(shape))
    if place < 0 or shape[place] == 1:
        return Aligned(where, {call.self: where})
    own = SampleAxis(place, where.outer)
    return Aligned(where, {call.self: where, values: own}) if axis_of(values) == own else None


_PUT = [
    call(MIXED, [None, _ROWS[:3]], MIXED * 3), call(WIDE, [_ROWS[:3].int()], WIDE[0] + 1),
    call(WIDE, [None, *_ROW_COLUMN], WIDE[0, 0, 0]),
]  # fmt: skip


@define_aten(
    aten.index_put.default, kind=Kind.PRODUCT, batch=_put, zero=zero_with_all("self", "values"), layout=Layout.OPAQUE,
    sign=ANY_SIGN, nan=Nan.UNKNOWN,
    samples=[
        *_PUT, call(MIXED, [None, _ROWS], random(2, 5), True), call(WIDE, [_ROWS], random(5, 6, 32), True),
        call(WIDE, [None, *_ROW_COLUMN], random(4, 3, 4), True), call(WIDE, [None, _ROWS], MIXED[0, 0], True),
        call(WIDE, [*_ROW_COLUMN], random(3, 4, 32), True), call(MIXED, list(_ROW_COLUMN), random(3, 4), True),
    ],
)  # fmt: skip
class IndexPut(AtenOp):
    """``self`` with ``values`` written or added at tensors of integers, which index neighbouring axes."""

    x: Operand
    indices: list[Operand]
    values: Operand
    accumulate: bool

    def _axes(self) -> ScatterAxes:
        axes, size = indexed_axes(self.indices), extents(self.x)
        first, end = axes[0], axes[-1] + 1
        return ScatterAxes(
            tuple(size[:first]), tuple(size[first:end]), tuple(_sources(self.indices)), tuple(size[end:])
        )

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """The sources in order; of two for one place the last is kept, if they are not added."""
        axes, size = indexed_axes(self.indices), extents(self.x)

        def row(*i: Any) -> Any:
            total: Any = 0
            conditions = []
            for axis in axes:
                index = _at(self.indices[axis], i)
                conditions += inside(index, size[axis], wraps=True)
                total = total * size[axis] + wrapped(index, size[axis])
            return row_or_none(conditions, total)

        place = te.compute(self._axes().sources, row, name=f"{name}_place")
        return scatter(self._axes(), self.x, place, self.values, add=self.accumulate, name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """A scatter of rows of all indexed axes."""
        place = _place_onnx(graph, self.indices, extents(self.x))
        return scatter_onnx(graph, self._axes(), self.x, place, self.values, add=self.accumulate)

    def work(self, result: Tensor) -> Cost:
        """An addition for each value, if they are added."""
        return Cost(flops=math.prod(self._axes().scattered) if self.accumulate else 0)


def _alike(*names: str) -> Any:
    """Samples are on one axis of all of ``names``, and not on ``dim``."""

    def rule(call: Call, axis_of: AxisOf, _batch: int) -> Aligned | None:
        operands = [getattr(call, name) for name in names]
        place = only(axis_of(operand) for operand in operands)
        if place is None or place.axis == call.dim % len(extents(call.self.meta["val"])):
            return None
        return Aligned(place, dict.fromkeys(operands, place))

    return rule


@dataclass(frozen=True, eq=False)
class _AlongAxis(AtenOp):
    """One element of ``src`` goes to the place along ``dim`` that its index names, at its own place otherwise."""

    x: Operand
    dim: int
    index: Operand
    src: Operand

    def _axes(self) -> ScatterAxes:
        size, sources = extents(self.x), extents(self.index)
        axis = self.dim % len(size)
        before, behind = tuple(size[:axis]), tuple(size[axis + 1 :])
        return ScatterAxes(before, (size[axis],), (sources[axis],), behind)

    def _scattered(self, name: str, add: bool) -> te.Tensor:
        axis, size, sources = self.dim % len(self.x.shape), extents(self.x), extents(self.index)
        axes = self._axes()

        def covered(i: Sequence[Any]) -> list[Any]:
            """What ``index`` is too small for is left as it was."""
            return [p < extent for p, extent, whole in zip(i, sources, axes.scattered, strict=True) if extent < whole]

        def row(*i: Any) -> Any:
            index = self.index[i]
            row = row_or_none(inside(index, size[axis]), index.astype("int32"))
            return tirx.if_then_else(tirx.all(*covered(i), tirx.const(True, "bool")), row, -1)

        place = te.compute(axes.scattered, row, name=f"{name}_place")
        return scatter(axes, self.x, place, self.src, add=add, name=name)

    def _nodes(self, graph: OnnxWriter, add: bool) -> str:
        bounds = (graph.constant(b, "int64") for b in ([0] * len(self.x.shape), extents(self.index)))
        source = graph("Slice", self.src.name, *bounds)
        reduction = "add" if add else "none"
        axis = self.dim % len(self.x.shape)
        index = onnx_not_negative(graph, self.index, int(self.x.shape[axis]))
        return graph("ScatterElements", self.x.name, index, source, axis=axis, reduction=reduction)


_PAIRS = torch.tensor([[0, 2, 0], [1, 1, 2]])


@define_aten(
    aten.scatter.src, kind=Kind.PRODUCT, batch=_alike("self", "index", "src"), zero=zero_with_all("self", "src"),
    sign=ANY_SIGN, nan=Nan.UNKNOWN,
    layout=Layout.OPAQUE, samples=[call(MIXED, 1, torch.tensor([[2, 0], [1, 2]]), MIXED + 5)],
)  # fmt: skip
class ScatterSource(_AlongAxis):
    """``self`` with elements of ``src`` written along one axis; of two for one place the last is kept."""

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """The loop nest that writes the sources in order."""
        return self._scattered(name, False)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """Writes the nodes that compute what ``stages`` computes, and returns the name of the result."""
        return self._nodes(graph, False)


@define_aten(
    aten.scatter_add.default, kind=Kind.PRODUCT, batch=_alike("self", "index", "src"),
    zero=zero_with_all("self", "src"), sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE,
    samples=[
        call(MIXED, 1, _PAIRS, MIXED + 5), call(MIXED, 0, _PAIRS[:1] % 2, MIXED),
        call(WIDE, 1, (random(4, 9, 32).abs() * 100).long() % 6, random(4, 9, 32)), call(MIXED, -1, PLACES, MIXED - 1),
    ],
)  # fmt: skip
class ScatterAdd(_AlongAxis):
    """``self`` with elements of ``src`` added along one axis, in order."""

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """The loop nest that writes the sources in order."""
        return self._scattered(name, True)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """Writes the nodes that compute what ``stages`` computes, and returns the name of the result."""
        return self._nodes(graph, True)
