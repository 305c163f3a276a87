"""ATen reductions over any axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from fqt_deploy.core.call import Call, bind
from fqt_deploy.ops.aten.aten_op import AtenOp, Samples, aten, enter, extents, prims
from fqt_deploy.ops.aten.samples import BYTES, MIXED, WIDE, call
from fqt_deploy.ops.lib.dtypes import dtype_name, dtype_of
from fqt_deploy.ops.lib.float32 import of_ordered_key, ordered_key
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import OnnxWriter, element_type
from fqt_deploy.ops.op import Kind, Traits
from fqt_deploy.ops.traits import Aligned, AxisOf, Layout, Nan, keeps_sign, moved, zero_with_any


@dataclass(frozen=True)
class _Form:
    """How elements combine.

    Attributes:
        combine: TE reducer, ``(expression, axis=...) -> expression``.
        onnx: ONNX's op.
        finish: ``(total, number of elements) -> result``; None for the total itself.
        key: float32 element -> int32 that is reduced instead, where NaN has to win; None for the element itself.
    """

    combine: Callable[..., Any]
    onnx: str
    finish: Callable[[Any, int], Any] | None = None
    key: Callable[[Any], Any] | None = None


class Reduction(AtenOp):
    """One overload: the operand, the axes that are reduced (None for all), and whether they stay with extent 1.

    Attributes:
        form: how elements combine.
        axes_name: what the schema calls the axes; None where all are reduced.
    """

    form: ClassVar[_Form]
    axes_name: ClassVar[str | None]
    has_keepdim: ClassVar[bool]
    operand_name: ClassVar[str]

    def __init__(self, x: Any, dim: list[int] | None) -> None:
        """The call on ``x``; ``keepdim`` is seen from the result's rank."""
        self.x, self.dim = x, dim

    @classmethod
    def honoured(cls) -> tuple[str, ...]:
        """The operand, the axes and ``keepdim``."""
        optional = (cls.axes_name, "keepdim" if cls.has_keepdim else None)
        return (cls.operand_name, *[name for name in optional if name is not None])

    @classmethod
    def bound(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Self:
        """The call with these arguments."""
        values = bind(cls.target, tuple(args), kwargs)
        dim = None if cls.axes_name is None else values[cls.axes_name]
        return cls(values[cls.operand_name], [dim] if isinstance(dim, int) else dim)

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """One loop nest or two.

        A reduction over a leading axis together with inner ones runs first within each index of axis 0, then over
        axis 0: partial results belong to indices, never to threads. Where the inner ones have one element each, it
        would be a copy.
        """
        x, dtype = self.x, dtype_name(result.dtype)
        form = self.form if dtype == "float32" or self.form.key is None else replace(self.form, key=None, finish=None)
        size = extents(x)
        axes = _sorted_axes(self.dim, len(size))
        kept = [a for a in range(len(size)) if a not in axes]
        count = math.prod(size[a] for a in axes)
        keepdim = len(result.shape) == len(size)

        def element(value: Any) -> Any:
            value = value if dtype_of(value) == dtype else value.astype(dtype)
            return value if form.key is None else form.key(value)

        if axes[:1] == [0] and 1 < size[0] < count and kept:
            partial = _reduce(form, x, axes[1:], [0, *kept], element, f"{name}_partial")
            totals = _reduce(form, partial, [0], list(range(1, len(kept) + 1)), lambda value: value, f"{name}_total")
        else:
            totals = _reduce(form, x, axes, kept, element, f"{name}_total")

        def finished(*index: Any) -> Any:
            total = totals[tuple(index[a] for a in kept) if keepdim else index]
            return total if form.finish is None else form.finish(total, count)

        if form.finish is None and not (keepdim and axes):
            return totals
        return te.compute(extents(result), finished, name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """ONNX's reduction over the same axes."""
        dtype, keepdims = dtype_name(result.dtype), int(len(result.shape) == len(self.x.shape))
        axes = graph.constant(_sorted_axes(self.dim, len(self.x.shape)), "int64")
        value = graph.cast(self.x, dtype)
        reduced = graph(self.form.onnx, value, axes, keepdims=keepdims)
        if self.form.key is None or dtype != "float32":
            return reduced
        # ONNX Runtime's extremes pass over NaN.
        is_nan = graph("Cast", graph("IsNaN", value), to=element_type("float32"))
        any_nan = graph("Cast", graph("ReduceMax", is_nan, axes, keepdims=keepdims), to=element_type("bool"))
        return graph("Where", any_nan, graph.constant(math.nan, dtype), reduced)


def reduced_axes(call: Call) -> list[int]:
    """The axes that a call of a reduction reduces, ascending."""
    values = call.values()
    rank = len(next(iter(values.values())).meta["val"].shape)
    dim = values.get("dim", values.get("dims"))
    return _sorted_axes([dim] if isinstance(dim, int) else dim, rank)


def _sorted_axes(dim: Sequence[int] | None, rank: int) -> list[int]:
    return sorted(int(d) % rank for d in dim) if dim else list(range(rank))


def _batch(call: Call, axis_of: AxisOf, _size: int) -> Aligned | None:
    """Where the samples are after the axes before theirs are gone; None if their axis is reduced."""
    axes, source = reduced_axes(call), next(iter(call.values().values()))
    keepdim = len(call.node.meta["val"].shape) == len(source.meta["val"].shape)

    def place(axis: int) -> int | None:
        if axis in axes:
            return None
        return axis if keepdim else axis - sum(a < axis for a in axes)

    return moved(call, axis_of, place)


def _batch_of_sum(call: Call, axis_of: AxisOf, size: int) -> Aligned | None:
    """The same; a sum may be over samples, too."""
    source = next(iter(call.values().values()))
    where = axis_of(source)
    if where is not None and where.axis in reduced_axes(call):
        return Aligned(None, {source: where})
    return _batch(call, axis_of, size)


def _reduce(
    form: _Form, x: te.Tensor, axes: list[int], kept: list[int], element: Callable[[Any], Any], name: str
) -> te.Tensor:
    loops = {a: te.reduce_axis((0, int(x.shape[a])), name=f"r{a}") for a in axes}

    def total(*index: Any) -> Any:
        where = dict(zip(kept, index, strict=True)) | loops
        return form.combine(element(x[tuple(where[a] for a in range(len(x.shape)))]), axis=list(loops.values()))

    return te.compute([int(x.shape[a]) for a in kept], total, name=name)


def _define(target: Any, form: _Form, samples: Samples) -> None:
    names = [argument.name for argument in target._schema.arguments]
    facts = {
        "form": form, "operand_name": names[0], "has_keepdim": "keepdim" in names, "__module__": __name__,
        "__doc__": f"``{target}``.",
        "axes_name": next((name for name in ("dim", "dims") if name in names), None),
    }  # fmt: skip
    batch = _batch_of_sum if form is _SUM else _batch
    traits = Traits(
        kind=Kind.ROOT, batch=batch, zero=zero_with_any(names[0]), sign=keeps_sign(names[0]), nan=Nan.KEPT,
        layout=Layout.REDUCTION,
    )  # fmt: skip
    enter(type(str(target), (Reduction,), facts), target, traits, samples)


_WHOLE = [call(MIXED), call(WIDE), call(WIDE[0])]
_AXES = [call(MIXED, [0]), call(MIXED, [-1], True)] + [
    call(WIDE, axes, keep) for axes in ([0], [2], [0, 1], [1, 2], [0, 1, 2]) for keep in (False, True)
]
_INTEGERS = [call(BYTES, [1])]
_SUM = _Form(lambda x, axis: te.sum(x, axis=axis), "ReduceSum")
_MEAN = _Form(
    lambda x, axis: te.sum(x, axis=axis), "ReduceMean", lambda total, count: total / tirx.const(float(count), "float32")
)

_define(aten.sum.default, _SUM, _WHOLE)
_define(aten.sum.dim_IntList, _SUM, _AXES)
_define(prims.sum.default, _SUM, [call(MIXED, [1])])
_define(aten.mean.default, _MEAN, _WHOLE)
_define(aten.mean.dim, _MEAN, _AXES)
_MAX = _Form(
    lambda x, axis: te.max(x, axis=axis),
    "ReduceMax",
    lambda key, _: of_ordered_key(key),
    lambda x: ordered_key(x, nan=math.inf),
)
_MIN = _Form(
    lambda x, axis: te.min(x, axis=axis),
    "ReduceMin",
    lambda key, _: of_ordered_key(key),
    lambda x: ordered_key(x, nan=-math.inf),
)
_define(aten.amax.default, _MAX, [*_AXES, *_INTEGERS])
_define(aten.amin.default, _MIN, [*_AXES[:2], *_INTEGERS])
