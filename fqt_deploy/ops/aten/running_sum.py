"""Sums and products of all elements up to each along one axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fqt_deploy.core.call import Call
from fqt_deploy.ops.aten.aten_op import AtenOp, aten, define_aten, extents
from fqt_deploy.ops.aten.samples import BYTES, MASK, MIXED, WIDE, call
from fqt_deploy.ops.lib.dtypes import dtype_name
from fqt_deploy.ops.lib.in_order import in_order, loop, unflattened
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import OnnxWriter
from fqt_deploy.ops.op import Cost, Kind, Operand
from fqt_deploy.ops.traits import ANY_SIGN, Aligned, AxisOf, Layout, Nan, moved, zero_with_any


def _other_axis(call: Call, axis_of: AxisOf, _batch: int) -> Aligned | None:
    dim = call.dim % len(extents(call.self.meta["val"]))
    return moved(call, axis_of, lambda axis: None if axis == dim else axis)


@dataclass(frozen=True, eq=False)
class _Running(AtenOp):
    """Each element combined with those before it along one axis, in order."""

    x: Operand
    dim: int

    def _nest(self, result: Tensor, name: str, combine: Callable[[Any, Any], Any], neutral: int) -> te.Tensor:
        """Along the axis in order, from ``neutral`` on."""
        size, dtype = extents(self.x), dtype_name(result.dtype)
        axis = self.dim % len(size)
        terms = te.compute(size, lambda *i: self.x[i].astype(dtype), name=f"{name}_term")
        inner = math.prod(size[axis + 1 :])

        def loops(target: Any, source: Any) -> list[Any]:
            def column(number: Any) -> Any:
                before = unflattened(tirx.floordiv(number, inner), size[:axis])
                behind = unflattened(tirx.floormod(number, inner), size[axis + 1 :])

                def element(i: Any) -> Any:
                    here, last = [*before, i, *behind], [*before, i - 1, *behind]
                    so_far = tirx.if_then_else(i > 0, target[tuple(last)], tirx.const(neutral, dtype))
                    return tirx.BufferStore(target, combine(so_far, source[tuple(here)]), here)

                return loop("element", size[axis], element)

            return [loop("column", math.prod(size) // size[axis], column)]

        return in_order(size, dtype, [terms], loops, contiguous=inner, name=name)

    def work(self, result: Tensor) -> Cost:
        """Returns one operation for each element."""
        return Cost(flops=result.numel())


@define_aten(
    aten.cumsum.default, kind=Kind.PRODUCT, batch=_other_axis, zero=zero_with_any("self"), layout=Layout.OPAQUE,
    sign=ANY_SIGN, nan=Nan.UNKNOWN,
    samples=[call(MIXED, 1), call(WIDE, 1), call(WIDE[0].abs(), -1), call(MASK, 0), call(BYTES, 1)],
)  # fmt: skip
class CumulativeSum(_Running):
    """Each element is the sum of those before it along one axis and itself."""

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Along the axis in order."""
        return self._nest(result, name, lambda a, b: a + b, 0)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """Writes the nodes that compute what ``stages`` computes, and returns the name of the result."""
        value = graph.cast(self.x, dtype_name(result.dtype))
        return graph("CumSum", value, graph.constant(self.dim % len(self.x.shape), "int64"))


@define_aten(
    aten.cumprod.default, kind=Kind.PRODUCT, batch=_other_axis, zero=zero_with_any("self"), layout=Layout.OPAQUE,
    sign=ANY_SIGN, nan=Nan.UNKNOWN,
    samples=[call(MIXED, 1), call(WIDE, 1), call(WIDE[0].abs(), -1), call(MASK, 0), call(BYTES, 1)],
)  # fmt: skip
class CumulativeProduct(_Running):
    """Each element is the product of those before it along one axis and itself."""

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Along the axis in order."""
        return self._nest(result, name, lambda a, b: a * b, 1)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """A product for each element, of those up to it: ONNX has no running product."""
        rank, dtype = len(self.x.shape), dtype_name(result.dtype)
        axis = self.dim % rank
        order = [*[a for a in range(rank) if a != axis], axis]
        last = graph("Transpose", graph.cast(self.x, dtype), perm=order)
        rows = graph("Unsqueeze", last, graph.constant([rank - 1], "int64"))
        counted = graph.constant(np.tri(self.x.shape[axis], dtype=bool), "bool")
        terms = graph("Where", counted, rows, graph.constant(1, dtype))
        product = graph("ReduceProd", terms, graph.constant([rank], "int64"), keepdims=0)
        return graph("Transpose", product, perm=[order.index(a) for a in range(rank)])
