"""ATen ops that move or select elements without computing on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from fqt_deploy.core.call import Call
from fqt_deploy.ops.aten.aten_op import AtenOp, aten, define_aten, extents
from fqt_deploy.ops.aten.pointwise import read_broadcast
from fqt_deploy.ops.aten.samples import MIXED, PLACES, ROW, WIDE, call
from fqt_deploy.ops.lib.dtypes import dtype_name
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import OnnxWriter
from fqt_deploy.ops.lib.reshape_index import reshape_index
from fqt_deploy.ops.lib.safe_index import elements_along, onnx_not_negative
from fqt_deploy.ops.op import Kind, Operand
from fqt_deploy.ops.traits import (
    NEVER_ZERO,
    Aligned,
    AxisOf,
    Layout,
    Nan,
    SampleAxis,
    keeps_sign,
    moved,
    only,
    regrouped,
    zero_with_any,
)


def _viewed(call: Call, axis_of: AxisOf, batch: int) -> Aligned | None:
    where = axis_of(call.self)
    if where is None:
        return None
    result = regrouped(where, extents(call.self.meta["val"]), extents(call.node.meta["val"]), batch)
    return None if result is None else Aligned(result, {call.self: where})


@define_aten(
    aten.view.default, kind=Kind.ELEMENTWISE, batch=_viewed, zero=zero_with_any("self"), layout=Layout.OPAQUE,
    sign=keeps_sign("self"), nan=Nan.KEPT,
    samples=[call(MIXED, [3, 2])],
)  # fmt: skip
class View(AtenOp):
    """The same elements, row by row, in another shape."""

    x: Operand
    size: list[int]

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Each element from where it lies in the source's shape."""
        source, target = extents(self.x), extents(result)
        return te.compute(target, lambda *i: self.x[tuple(reshape_index(i, target, source))], name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """Writes one Reshape node, and returns the name of its result."""
        return graph("Reshape", self.x.name, graph.constant(extents(result), "int64"))


def _permuted(call: Call, axis_of: AxisOf, _batch: int) -> Aligned | None:
    order = [int(d) % len(call.dims) for d in call.dims]
    return moved(call, axis_of, order.index)


@define_aten(
    aten.permute.default, kind=Kind.ELEMENTWISE, batch=_permuted, zero=zero_with_any("self"), layout=Layout.OPAQUE,
    sign=keeps_sign("self"), nan=Nan.KEPT,
    samples=[call(MIXED, [1, 0])],
)  # fmt: skip
class Permute(AtenOp):
    """The axes in another order."""

    x: Operand
    dims: list[int]

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Each element with its index permuted."""
        inverse = [0] * len(self.dims)
        for axis, source in enumerate(self.dims):
            inverse[source % len(self.dims)] = axis
        return te.compute(extents(result), lambda *i: self.x[tuple(i[a] for a in inverse)], name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """Writes one Transpose node, and returns the name of its result."""
        return graph("Transpose", self.x.name, perm=[axis % len(self.dims) for axis in self.dims])


def _expanded(call: Call, axis_of: AxisOf, _batch: int) -> Aligned | None:
    added = len(extents(call.node.meta["val"])) - len(extents(call.self.meta["val"]))
    return moved(call, axis_of, lambda axis: axis + added)


@define_aten(
    aten.expand.default, kind=Kind.ELEMENTWISE, batch=_expanded, zero=zero_with_any("self"), layout=Layout.OPAQUE,
    sign=keeps_sign("self"), nan=Nan.KEPT,
    samples=[call(ROW, [4, 3])],
)  # fmt: skip
class Expand(AtenOp):
    """Axes of extent 1, and new ones in front, repeated."""

    x: Operand
    size: list[int]

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Each element from the one it repeats."""
        return te.compute(extents(result), lambda *i: read_broadcast(self.x, i), name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """Writes the nodes that compute what ``stages`` computes, and returns the name of the result."""
        return graph("Expand", self.x.name, graph.constant(extents(result), "int64"))


def _sliced(call: Call, axis_of: AxisOf, _batch: int) -> Aligned | None:
    cut = call.dim % len(extents(call.self.meta["val"]))
    return moved(call, axis_of, lambda axis: None if axis == cut else axis)


@define_aten(
    aten.slice.Tensor, kind=Kind.ELEMENTWISE, batch=_sliced, zero=zero_with_any("self"), layout=Layout.OPAQUE,
    sign=keeps_sign("self"), nan=Nan.KEPT,
    samples=[call(MIXED, 1, 1), call(MIXED, -1, -2, 3), call(MIXED, 1, 0, 3, 2)],
)  # fmt: skip
class Slice(AtenOp):
    """Every ``step``-th element along one axis, from ``start`` to before ``end``."""

    x: Operand
    dim: int
    start: int | None
    end: int | None
    step: int

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Each element from its place along the axis."""
        axis = self.dim % len(self.x.shape)
        extent, begin = int(self.x.shape[axis]), self.start or 0
        begin = max(0, begin + extent if begin < 0 else begin)

        def at(*i: Any) -> Any:
            return self.x[(*i[:axis], i[axis] * self.step + begin, *i[axis + 1 :])]

        return te.compute(extents(result), at, name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """Writes the nodes that compute what ``stages`` computes, and returns the name of the result."""
        end = np.iinfo(np.int64).max if self.end is None else self.end
        bounds = [self.start or 0, end, self.dim, self.step]
        return graph("Slice", self.x.name, *[graph.constant([bound], "int64") for bound in bounds])


def _padded(call: Call, axis_of: AxisOf, _batch: int) -> Aligned | None:
    rank = len(extents(call.self.meta["val"]))
    return moved(call, axis_of, lambda axis: None if any(call.pad[2 * (rank - 1 - axis) :][:2]) else axis)


@define_aten(
    aten.constant_pad_nd.default, kind=Kind.ELEMENTWISE, batch=_padded, zero=NEVER_ZERO, layout=Layout.OPAQUE,
    sign=keeps_sign("self", "value"), nan=Nan.KEPT,
    samples=[
        call(MIXED, [1, 2]), call(MIXED, [0, -1, 2, 0], 1.5), call(MIXED, [-1, 1]), call(WIDE, [1, 2, 0, 3, -1, 1], 0.5)
    ],
)  # fmt: skip
class ConstantPad(AtenOp):
    """Elements added, or cut off, on both sides of the last axes; ``pad`` begins with the last one."""

    x: Operand
    pad: list[int]
    value: float

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Each element from its place in the source, or the constant."""
        rank, constant = len(self.x.shape), tirx.const(self.value, self.x.dtype)
        places = [2 * (rank - 1 - axis) for axis in range(rank)]
        before = [self.pad[place] if place < len(self.pad) else 0 for place in places]

        def at(*i: Any) -> Any:
            source = [position - shift for position, shift in zip(i, before, strict=True)]
            bounds = [c for p, extent in zip(source, self.x.shape, strict=True) for c in (p >= 0, p < int(extent))]
            return tirx.if_then_else(tirx.all(*bounds), self.x[tuple(source)], constant)

        return te.compute(extents(result), at, name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """The same in ONNX, where axes are named."""
        before, after = self.pad[-2::-2], self.pad[::-2]  # from the last axis backwards, in pairs
        axes = list(range(len(self.x.shape) - len(before), len(self.x.shape)))
        pads, filling = graph.constant([*before, *after], "int64"), graph.constant(self.value, self.x.dtype)
        return graph("Pad", self.x.name, pads, filling, graph.constant(axes, "int64"))


def _selected(call: Call, axis_of: AxisOf, _batch: int) -> Aligned | None:
    dim = call.dim % len(extents(call.self.meta["val"]))
    return moved(call, axis_of, lambda axis: None if dim == axis else axis - (dim < axis))


@define_aten(
    aten.select.int, kind=Kind.ELEMENTWISE, batch=_selected, zero=zero_with_any("self"), layout=Layout.OPAQUE,
    sign=keeps_sign("self"), nan=Nan.KEPT,
    samples=[call(MIXED, 1, -1)],
)  # fmt: skip
class Select(AtenOp):
    """One index of one axis, which goes away."""

    x: Operand
    dim: int
    index: int

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Each element with the index put in."""
        axis = self.dim % len(self.x.shape)
        position = self.index % int(self.x.shape[axis])
        return te.compute(extents(result), lambda *i: self.x[(*i[:axis], position, *i[axis:])], name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """A gather by a scalar."""
        return graph("Gather", self.x.name, graph.constant(self.index, "int64"), axis=self.dim % len(self.x.shape))


def _joined(call: Call, axis_of: AxisOf, _batch: int) -> Aligned | None:
    places = {place for tensor in call.tensors if (place := axis_of(tensor)) is not None}
    dim = call.dim % len(extents(call.node.meta["val"]))
    if len(places) != 1:
        return None
    where = result = places.pop()
    if dim == where.axis:  # one batch behind another: more groups of all samples
        if len({extents(tensor.meta["val"])[dim] for tensor in call.tensors}) != 1:
            return None
        result = SampleAxis(dim, where.outer * len(call.tensors))
    return Aligned(result, dict.fromkeys(call.tensors, where))


@define_aten(
    aten.cat.default, kind=Kind.ELEMENTWISE, batch=_joined, zero=NEVER_ZERO, layout=Layout.OPAQUE,
    sign=keeps_sign("tensors"), nan=Nan.KEPT,
    samples=[call([MIXED, MIXED + 1], -1), call([ROW, ROW])],
)  # fmt: skip
class Cat(AtenOp):
    """Tensors one behind another along one axis."""

    tensors: list[Operand]
    dim: int

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Each element from the tensor that its index falls into."""
        axis = self.dim % len(result.shape)
        starts = [0]
        for tensor in self.tensors:
            starts.append(starts[-1] + int(tensor.shape[axis]))

        def at(*i: Any) -> Any:
            value: Any = None
            for tensor, start in reversed(list(zip(self.tensors, starts, strict=False))):
                here = tensor[(*i[:axis], i[axis] - start, *i[axis + 1 :])]
                inside = i[axis] < start + int(tensor.shape[axis])
                value = here if value is None else tirx.if_then_else(inside, here, value)
            return value

        return te.compute(extents(result), at, name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """The same in ONNX, of one type."""
        dtype = dtype_name(result.dtype)
        return graph("Concat", *[graph.cast(t, dtype) for t in self.tensors], axis=self.dim % len(result.shape))


def _along(call: Call, axis_of: AxisOf, _batch: int) -> Aligned | None:
    """Rows of ``self`` and ``index`` belong together along every axis but the one that is indexed."""
    place = only(axis_of(tensor) for tensor in (call.self, call.index))
    source, index = extents(call.self.meta["val"]), extents(call.index.meta["val"])
    if place is None or call.dim % len(source) == place.axis:
        return None
    return Aligned(place, {call.self: place, call.index: place}) if source[place.axis] == index[place.axis] else None


@define_aten(
    aten.gather.default, kind=Kind.ELEMENTWISE, batch=_along, zero=zero_with_any("self"),
    sign=keeps_sign("self"), nan=Nan.KEPT,
    layout=Layout.OPAQUE, samples=[call(MIXED, 1, PLACES)],
)  # fmt: skip
class Gather(AtenOp):
    """Along one axis the elements at ``index``, one for each element of ``index``."""

    x: Operand
    dim: int
    index: Operand

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Each element from where its index says."""
        axis = self.dim % len(self.x.shape)
        return te.compute(extents(result), lambda *i: elements_along(self.x, axis, self.index[i], i), name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """Writes the nodes that compute what ``stages`` computes, and returns the name of the result."""
        axis = self.dim % len(self.x.shape)
        index = onnx_not_negative(graph, self.index, int(self.x.shape[axis]))
        return graph("GatherElements", self.x.name, index, axis=axis)


@define_aten(
    aten.scatter.value, kind=Kind.ELEMENTWISE, batch=_along, zero=NEVER_ZERO, layout=Layout.OPAQUE,
    sign=keeps_sign("self", "value"), nan=Nan.KEPT,
    samples=[call(MIXED, 1, PLACES[:, :1], 9.0)],
)  # fmt: skip
class ScatterValue(AtenOp):
    """``self`` with a number written to one position of each row along one axis."""

    x: Operand
    dim: int
    index: Operand
    value: float

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Each element, or the number where the index is its own."""
        axis = self.dim % len(self.x.shape)
        if int(self.index.shape[axis]) != 1:
            raise ValueError("scatter is supported for one position per row")

        def at(*i: Any) -> Any:
            hit = self.index[(*i[:axis], 0, *i[axis + 1 :])].equal(i[axis].astype(self.index.dtype))
            return tirx.Select(hit, tirx.const(self.value, self.x.dtype), self.x[i])

        return te.compute(extents(result), at, name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """The same in ONNX, where the number is a tensor."""
        shape = graph.constant(self.index.shape, "int64")
        values = graph("Expand", graph.constant(self.value, self.x.dtype), shape)
        axis = self.dim % len(self.x.shape)
        index = onnx_not_negative(graph, self.index, int(self.x.shape[axis]))
        return graph("ScatterElements", self.x.name, index, values, axis=axis)
