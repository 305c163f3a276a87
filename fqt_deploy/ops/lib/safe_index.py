"""Indices that values decide on: what is read outside of an axis is NaN or zero, what is written there is dropped.

PyTorch raises an error for such an index. A kernel cannot, and memory beside a tensor is neither read nor written; a
NaN is seen in the loss. In ONNX the runtime raises its own error.
"""

from __future__ import annotations

from typing import Any

from fqt_deploy.ops.lib.dtypes import dtype_of
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import OnnxValue, OnnxWriter

_NAN = 0x7FC00000
"""The bits of a quiet NaN."""


def inside(index: Any, extent: int, *, wraps: bool = False) -> list[Any]:
    """The conditions for ``index``, of its own type, to name one of ``extent`` places.

    Args:
        index: an integer expression.
        extent: of the axis.
        wraps: negative ones count from the end.
    """
    return [index >= (-extent if wraps else 0), index < extent]


def wrapped(index: Any, extent: int) -> Any:
    """An index as int32, where negative ones count from the end; it is right only if it is ``inside``."""
    index = index.astype("int32")
    return tirx.Select(index < 0, index + extent, index)


def element_or_nothing(conditions: list[Any], element: Any) -> Any:
    """The expression ``element`` if all ``conditions`` hold; else NaN, zero or false, and nothing is read."""
    dtype, nan = dtype_of(element), tirx.reinterpret("float32", tirx.const(_NAN, "int32"))
    nothing = nan if dtype == "float32" else tirx.const(0, dtype)
    return tirx.if_then_else(tirx.all(*conditions), element, nothing)


def row_or_none(conditions: list[Any], row: Any) -> Any:
    """The int32 ``row`` to write to if all ``conditions`` hold; else -1, which ``scatter`` leaves out."""
    return tirx.Select(tirx.all(*conditions), row, tirx.const(-1, "int32"))


def elements_along(x: te.Tensor, axis: int, index: Any, position: tuple[Any, ...]) -> Any:
    """The element of ``x`` at ``position``, but at ``index`` along ``axis``."""
    element = x[(*position[:axis], index.astype("int32"), *position[axis + 1 :])]
    return element_or_nothing(inside(index, int(x.shape[axis])), element)


def onnx_not_negative(graph: OnnxWriter, index: OnnxValue, extent: int) -> str:
    """The index as int64, where negative ones become ``extent``: ONNX would count them from the end."""
    whole = graph.cast(index, "int64")
    negative = graph("Less", whole, graph.constant(0, "int64"))
    return graph("Where", negative, graph.constant(extent, "int64"), whole)
