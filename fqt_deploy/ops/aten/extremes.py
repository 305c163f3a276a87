"""Where the largest or smallest element is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.core.call import Call
from fqt_deploy.ops.aten.aten_op import AtenOp, aten, define_aten, extents
from fqt_deploy.ops.aten.samples import BYTES, MIXED, WIDE, call
from fqt_deploy.ops.lib.dtypes import dtype_of
from fqt_deploy.ops.lib.float32 import is_nan
from fqt_deploy.ops.lib.in_order import in_order, loop, unflattened
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import OnnxWriter, element_type
from fqt_deploy.ops.op import Kind, Operand
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Aligned, AxisOf, Layout, Nan, moved


def _other_axis(call: Call, axis_of: AxisOf, _batch: int) -> Aligned | None:
    if call.dim is None:
        return None
    dim = call.dim % len(extents(call.self.meta["val"]))
    return moved(call, axis_of, lambda axis: None if axis == dim else axis - (dim < axis and not call.keepdim))


@dataclass(frozen=True, eq=False)
class _Place(AtenOp):
    """The index of an extreme element along one axis, or in the flat tensor; of equal ones the first, as of NaN."""

    x: Operand
    dim: int | None
    keepdim: bool

    def _found(self, result: Tensor, name: str, better: Callable[[Any, Any], Any]) -> te.Tensor:
        """Along the axis in order: a later element wins if it is ``better`` than the best so far."""
        size = extents(self.x)
        axis = None if self.dim is None else self.dim % len(size)
        before, own, behind = ([], size, []) if axis is None else (size[:axis], [size[axis]], size[axis + 1 :])
        inner, shape = math.prod(behind), extents(result)
        copied = te.compute(size, lambda *i: self.x[i], name=f"{name}_operand")

        def loops(target: Any, source: Any) -> list[Any]:
            def column(number: Any) -> Any:
                outside = unflattened(tirx.floordiv(number, inner), before)
                inside = unflattened(tirx.floormod(number, inner), behind)
                at = tuple(unflattened(number, shape))

                def element(place: Any) -> Any:
                    def read(flat: Any) -> Any:
                        return source[(*outside, *unflattened(flat, own), *inside)]

                    best = tirx.if_then_else(place > 0, target[at], tirx.const(0, "int64"))
                    wins = better(read(place), read(best.astype("int32")))
                    return tirx.BufferStore(target, tirx.Select(wins, place.astype("int64"), best), list(at))

                return loop("element", math.prod(own), element)

            return [loop("column", math.prod(shape), column)]

        return in_order(shape, "int64", [copied], loops, contiguous=inner, name=name)

    def _nodes(self, graph: OnnxWriter, result: Tensor, op: str) -> str:
        value, axis, keepdims = self.x.name, 0, int(self.keepdim)
        if self.dim is None:
            value, keepdims = graph("Reshape", value, graph.constant([-1], "int64")), 0
        else:
            axis = self.dim % len(self.x.shape)
        place = graph(op, value, axis=axis, keepdims=keepdims)
        if self.x.dtype == "float32":  # what ONNX Runtime makes of NaN depends on where it is
            is_nan = graph("Cast", graph("IsNaN", value), to=element_type("float32"))
            first = graph("ArgMax", is_nan, axis=axis, keepdims=keepdims)
            any_nan = graph("ReduceMax", is_nan, graph.constant([axis], "int64"), keepdims=keepdims)
            place = graph("Where", graph("Greater", any_nan, graph.constant(0.0, "float32")), first, place)
        if self.dim is None:
            return graph("Reshape", place, graph.constant(extents(result), "int64"))
        return place


def _or_nan(better: Any, later: Any, best: Any) -> Any:
    """Whether a later element wins: if it is better, or NaN where the best so far is not."""
    if dtype_of(later) != "float32":
        return better
    return tirx.Or(better, tirx.And(is_nan(later), tirx.Not(is_nan(best))))


_TIES = torch.tensor([[1.0, 3.0, 3.0, -2.0], [-1.0, -4.0, -1.0, -4.0]])
_WITH_NAN = torch.tensor([[1.0, math.nan, math.inf, math.nan], [-math.inf, 0.0, math.inf, 2.0], [math.nan] * 4])
_SAMPLES = [
    call(MIXED, 1), call(WIDE, -1, True), call(WIDE, 0), call(WIDE), call(_TIES, 1), call(_TIES, None, True),
    call(BYTES, 1), call(_WITH_NAN, 1), call(_WITH_NAN), call(_WITH_NAN, 0, True),
]  # fmt: skip


@define_aten(
    aten.argmax.default, kind=Kind.PRODUCT, batch=_other_axis, zero=NEVER_ZERO, layout=Layout.OPAQUE, samples=_SAMPLES,
    sign=ANY_SIGN, nan=Nan.UNKNOWN,
)  # fmt: skip
class Argmax(_Place):
    """The index of the largest element."""

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Along the axis in order."""
        return self._found(result, name, lambda a, b: _or_nan(a > b, a, b))

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """Writes the nodes that compute what ``stages`` computes, and returns the name of the result."""
        return self._nodes(graph, result, "ArgMax")


@define_aten(
    aten.argmin.default, kind=Kind.PRODUCT, batch=_other_axis, zero=NEVER_ZERO, layout=Layout.OPAQUE, samples=_SAMPLES,
    sign=ANY_SIGN, nan=Nan.UNKNOWN,
)  # fmt: skip
class Argmin(_Place):
    """The index of the smallest element."""

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Along the axis in order."""
        return self._found(result, name, lambda a, b: _or_nan(a < b, a, b))

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """Writes the nodes that compute what ``stages`` computes, and returns the name of the result."""
        return self._nodes(graph, result, "ArgMin")
