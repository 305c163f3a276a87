"""ATen ops that rearrange, repeat or overwrite whole slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fqt_deploy.core.call import Call
from fqt_deploy.ops.aten.aten_op import AtenOp, aten, define_aten, extents
from fqt_deploy.ops.aten.samples import MIXED, WIDE, call
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import OnnxWriter
from fqt_deploy.ops.lib.safe_index import elements_along, onnx_not_negative
from fqt_deploy.ops.op import Kind, Operand
from fqt_deploy.ops.traits import (
    NEVER_ZERO,
    Aligned,
    AxisOf,
    Layout,
    Nan,
    SampleAxis,
    broadcast,
    keeps_sign,
    moved,
    only,
    zero_with_all,
    zero_with_any,
)

_PLACES = torch.tensor([2, 0, 0, 1])


def _rank(call: Call) -> int:
    return len(extents(call.self.meta["val"]))


def _together(call: Call, axis_of: AxisOf, touched: set[int]) -> Aligned | None:
    """The samples of ``self``, and of ``src`` if there is one of its rank, on an axis that is not ``touched``."""
    operands = [call.self, *([call.src] if "src" in call else [])]
    place = only(axis_of(operand) for operand in operands)
    if place is None or place.axis in touched:
        return None
    return Aligned(place, dict.fromkeys(operands, place))


def _untouched(*names: str) -> Any:
    """The samples stay on their axis where none of the axes that arguments ``names`` name is theirs."""

    def rule(call: Call, axis_of: AxisOf, _batch: int) -> Aligned | None:
        touched: set[int] = set()
        for name in names:
            given = getattr(call, name)
            touched |= {int(d) % _rank(call) for d in ([given] if isinstance(given, int) else given)}
        return _together(call, axis_of, touched)

    return rule


@define_aten(
    aten.flip.default, kind=Kind.ELEMENTWISE, batch=_untouched("dims"), zero=zero_with_any("self"),
    sign=keeps_sign("self"), nan=Nan.KEPT,
    layout=Layout.OPAQUE, samples=[call(MIXED, [0]), call(WIDE, [-1, 0])],
)  # fmt: skip
class Flip(AtenOp):
    """Some axes backwards."""

    x: Operand
    dims: list[int]

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Each element from the other end."""
        size = extents(self.x)
        turned = {d % len(size) for d in self.dims}

        def at(*i: Any) -> Any:
            return self.x[tuple(size[a] - 1 - p if a in turned else p for a, p in enumerate(i))]

        return te.compute(size, at, name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """A slice with a negative step."""
        axes = [d % len(self.x.shape) for d in self.dims]
        low = np.iinfo(np.int64).min
        bounds = ([-1] * len(axes), [low] * len(axes), axes, [-1] * len(axes))
        return graph("Slice", self.x.name, *[graph.constant(bound, "int64") for bound in bounds])


def _rolled(call: Call, axis_of: AxisOf, _batch: int) -> Aligned | None:
    touched = {int(d) % _rank(call) for d in call.dims}
    return moved(call, axis_of, lambda axis: None if not touched or axis in touched else axis)


@define_aten(
    aten.roll.default, kind=Kind.ELEMENTWISE, batch=_rolled, zero=zero_with_any("self"), layout=Layout.OPAQUE,
    sign=keeps_sign("self"), nan=Nan.KEPT,
    samples=[call(MIXED, [1], [0]), call(WIDE, [-3, 2], [2, 0]), call(MIXED, [4])],
)  # fmt: skip
class Roll(AtenOp):
    """Elements moved along axes, those that leave one end come in at the other; without axes, of the flat tensor."""

    x: Operand
    shifts: list[int]
    dims: list[int]

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Each element from where it was."""
        size = extents(self.x)
        if not self.dims:
            return self._flat(size, name)
        shift = [0] * len(size)
        for amount, axis in zip(self.shifts, self.dims, strict=True):
            shift[axis % len(size)] += amount

        def at(*i: Any) -> Any:
            return self.x[tuple(_before(p, s, extent) for p, s, extent in zip(i, shift, size, strict=True))]

        return te.compute(size, at, name=name)

    def _flat(self, size: list[int], name: str) -> te.Tensor:
        count = int(np.prod(size))

        def at(*i: Any) -> Any:
            flat: Any = 0
            for position, extent in zip(i, size, strict=True):
                flat = flat * extent + position
            flat = _before(flat, self.shifts[0], count)
            source = []
            for extent in reversed(size):
                source.append(tirx.floormod(flat, extent))
                flat = tirx.floordiv(flat, extent)
            return self.x[tuple(reversed(source))]

        return te.compute(size, at, name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """Writes one Gather node for each axis, and returns the name of the last result."""
        if not self.dims:
            flat = graph("Reshape", self.x.name, graph.constant([-1], "int64"))
            count = int(np.prod(self.x.shape))
            places = graph.constant((np.arange(count) - self.shifts[0]) % count, "int64")
            return graph("Reshape", graph("Gather", flat, places, axis=0), graph.constant(self.x.shape, "int64"))
        value = self.x.name
        for amount, axis in zip(self.shifts, self.dims, strict=True):
            extent = self.x.shape[axis]
            places = graph.constant((np.arange(extent) - amount) % extent, "int64")
            value = graph("Gather", value, places, axis=axis % len(self.x.shape))
        return value


def _before(position: Any, shift: int, extent: int) -> Any:
    """Where what is at ``position`` was before it was moved by ``shift``."""
    shift %= max(extent, 1)
    return tirx.floormod(position + (extent - shift), extent) if shift else position


def _repeated(call: Call, axis_of: AxisOf, _batch: int) -> Aligned | None:
    new = len(call.repeats) - _rank(call)
    return moved(call, axis_of, lambda axis: axis + new if call.repeats[axis + new] == 1 else None)


@define_aten(
    aten.repeat.default, kind=Kind.ELEMENTWISE, batch=_repeated, zero=zero_with_any("self"), layout=Layout.OPAQUE,
    sign=keeps_sign("self"), nan=Nan.KEPT,
    samples=[call(MIXED, [2, 2]), call(MIXED, [3, 1, 2])],
)  # fmt: skip
class Repeat(AtenOp):
    """The tensor several times along each axis, new axes in front."""

    x: Operand
    repeats: list[int]

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Each element from the one it repeats."""
        size, new = extents(self.x), len(self.repeats) - len(self.x.shape)

        def at(*i: Any) -> Any:
            times = self.repeats[new:]
            return self.x[
                tuple(
                    p if count == 1 else tirx.floormod(p, extent)
                    for p, extent, count in zip(i[new:], size, times, strict=True)
                )
            ]

        return te.compute(extents(result), at, name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """A tile of the same rank."""
        new = len(self.repeats) - len(self.x.shape)
        value = self.x.name
        if new:
            value = graph("Reshape", value, graph.constant([1] * new + list(self.x.shape), "int64"))
        return graph("Tile", value, graph.constant(self.repeats, "int64"))


@define_aten(
    aten.index_select.default, kind=Kind.ELEMENTWISE, batch=_untouched("dim"), zero=zero_with_any("self"),
    sign=keeps_sign("self"), nan=Nan.KEPT,
    layout=Layout.OPAQUE, samples=[call(MIXED, 1, _PLACES), call(WIDE, 0, _PLACES.int())],
)  # fmt: skip
class IndexSelect(AtenOp):
    """The slices at ``index`` along one axis."""

    x: Operand
    dim: int
    index: Operand

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Each element from its slice."""
        axis = self.dim % len(self.x.shape)
        return te.compute(extents(result), lambda *i: elements_along(self.x, axis, self.index[i[axis]], i), name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """Writes one Gather node, and returns the name of its result."""
        axis = self.dim % len(self.x.shape)
        return graph("Gather", self.x.name, onnx_not_negative(graph, self.index, int(self.x.shape[axis])), axis=axis)


def _start(start: int | None, extent: int) -> int:
    begin = start or 0
    return max(0, min(extent, begin + extent if begin < 0 else begin))


@define_aten(
    aten.slice_scatter.default, kind=Kind.ELEMENTWISE, batch=_untouched("dim"), zero=zero_with_all("self", "src"),
    sign=keeps_sign("self", "src"), nan=Nan.KEPT,
    layout=Layout.OPAQUE,
    samples=[
        call(MIXED, MIXED[:, :2] + 9, 1, 1), call(MIXED, MIXED[:, :2] + 9, -1, -2, 3),
        call(WIDE, WIDE[:, :, :11] - 1, 2, 0, 32, 3), call(MIXED, MIXED[:1] * 2, 0, 1),
    ],
)  # fmt: skip
class SliceScatter(AtenOp):
    """``self`` with every ``step``-th slice along one axis, from ``start`` to before ``end``, taken from ``src``."""

    x: Operand
    src: Operand
    dim: int
    start: int | None
    end: int | None
    step: int

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Each element from the slice it lies in, or as it was."""
        axis, step = self.dim % len(self.x.shape), self.step
        begin, count = _start(self.start, int(self.x.shape[axis])), int(self.src.shape[axis])

        def at(*i: Any) -> Any:
            offset = i[axis] - begin
            inside = [offset >= 0, offset < count * step]
            inside += [tirx.floormod(offset, step).equal(0)] if step > 1 else []
            place = tirx.floordiv(offset, step) if step > 1 else offset
            return tirx.if_then_else(tirx.all(*inside), self.src[(*i[:axis], place, *i[axis + 1 :])], self.x[i])

        return te.compute(extents(result), at, name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """A choice between the operand and gathered slices, by the position along the axis."""
        rank, axis = len(self.x.shape), self.dim % len(self.x.shape)
        extent, count = self.x.shape[axis], self.src.shape[axis]
        offset = np.arange(extent) - _start(self.start, extent)
        inside = (offset >= 0) & (offset < count * self.step) & (offset % self.step == 0)
        places = np.where(inside, offset // self.step, 0)
        shape = [extent if a == axis else 1 for a in range(rank)]
        slices = graph("Gather", self.src.name, graph.constant(places, "int64"), axis=axis)
        return graph("Where", graph.constant(inside.reshape(shape), "bool"), slices, self.x.name)


def _select_scattered(call: Call, axis_of: AxisOf, _batch: int) -> Aligned | None:
    """``src`` lacks the axis that is written to: behind it, its axes count one less."""
    dim = call.dim % _rank(call)
    of_src, of_self = axis_of(call.src), axis_of(call.self)
    if of_src is not None:
        of_src = SampleAxis(of_src.axis + (of_src.axis >= dim), of_src.outer)
    place = only((of_self, of_src))
    if place is None or place.axis == dim:
        return None
    return Aligned(place, {call.self: place, call.src: SampleAxis(place.axis - (place.axis > dim), place.outer)})


@define_aten(
    aten.select_scatter.default, kind=Kind.ELEMENTWISE, batch=_select_scattered, zero=zero_with_all("self", "src"),
    sign=keeps_sign("self", "src"), nan=Nan.KEPT,
    layout=Layout.OPAQUE, samples=[call(MIXED, MIXED[:, 0] + 9, 1, -1), call(MIXED, MIXED[0] * 2, 0, 1)],
)  # fmt: skip
class SelectScatter(AtenOp):
    """``self`` with one slice along one axis taken from ``src``."""

    x: Operand
    src: Operand
    dim: int
    index: int

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Each element of that slice from ``src``, the others as they were."""
        axis = self.dim % len(self.x.shape)
        place = self.index % int(self.x.shape[axis])

        def at(*i: Any) -> Any:
            return tirx.if_then_else(i[axis].equal(place), self.src[(*i[:axis], *i[axis + 1 :])], self.x[i])

        return te.compute(extents(result), at, name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """A choice by the position along the axis."""
        rank, axis = len(self.x.shape), self.dim % len(self.x.shape)
        extent = self.x.shape[axis]
        here = (np.arange(extent) == self.index % extent).reshape([extent if a == axis else 1 for a in range(rank)])
        inserted = graph("Unsqueeze", self.src.name, graph.constant([axis], "int64"))
        return graph("Where", graph.constant(here, "bool"), inserted, self.x.name)


@define_aten(
    aten.copy.default, kind=Kind.ELEMENTWISE, batch=broadcast, zero=NEVER_ZERO, layout=Layout.OPAQUE,
    sign=keeps_sign("src"), nan=Nan.KEPT,
    samples=[call(MIXED, MIXED + 1), call(MIXED, MIXED[:1]), call(MIXED, torch.tensor([[1, 2, 3], [4, 5, 6]]))],
)  # fmt: skip
class Copy(AtenOp):
    """``src`` in the shape and type of ``self``."""

    x: Operand
    src: Operand

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Each element from the one that it broadcasts."""
        rank, dtype = len(self.src.shape), str(self.x.dtype)

        def at(*i: Any) -> Any:
            places = zip(self.src.shape, i[len(i) - rank :], strict=True)
            return self.src[tuple(0 if int(d) == 1 else p for d, p in places)].astype(dtype)

        return te.compute(extents(result), at, name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """A cast and an expansion."""
        value = graph.cast(self.src, self.x.dtype)
        return graph("Expand", value, graph.constant(extents(result), "int64"))
