"""Rows that are written, or added, to where integers say: one loop nest and one form in ONNX for all ops that do so.

The result has axes ``outer + rows + inner``, what is scattered has ``outer + sources + inner``. The base is copied;
then each pair (outer, inner) takes its sources in order. So of two sources for one place the last one stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fqt_deploy.ops.lib.in_order import in_order, loop, unflattened
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import OnnxValue, OnnxWriter


@dataclass(frozen=True)
class ScatterAxes:
    """Extents of a scatter.

    Attributes:
        outer: of the axes in front of those that integers index.
        rows: of the axes that integers index.
        sources: of the axes of what is scattered, in their place.
        inner: of the axes behind.
    """

    outer: tuple[int, ...]
    rows: tuple[int, ...]
    sources: tuple[int, ...]
    inner: tuple[int, ...]

    @property
    def result(self) -> tuple[int, ...]:
        """The shape of the result."""
        return (*self.outer, *self.rows, *self.inner)

    @property
    def scattered(self) -> tuple[int, ...]:
        """The shape of what is scattered."""
        return (*self.outer, *self.sources, *self.inner)


def scatter(
    axes: ScatterAxes, base: te.Tensor | None, place: te.Tensor, source: te.Tensor, *, add: bool, name: str
) -> te.Tensor:
    """The loop nest.

    Args:
        axes: extents.
        base: what the result is before anything is scattered, zero for None; of the type of ``source``.
        place: the row of each source as int32, counted over all indexed axes; a source of row -1 is left out. Of axes
            ``sources``, or of those of what is scattered.
        source: what is scattered; it is broadcast.
        add: sources are added to what is there; otherwise they replace it.
        name: of the stage.
    """
    dtype, inner = str(source.dtype), math.prod(axes.inner)
    everywhere = len(place.shape) == len(axes.scattered)

    def loops(result: Any, places: Any, values: Any, *bases: Any) -> list[Any]:
        def copied(flat: Any) -> Any:
            position = unflattened(flat, axes.result)
            value = bases[0][tuple(position)] if bases else tirx.const(0, dtype)
            return tirx.BufferStore(result, value, position)

        def scattered(column: Any) -> Any:
            before = unflattened(tirx.floordiv(column, inner), axes.outer)
            behind = unflattened(tirx.floormod(column, inner), axes.inner)

            def one(number: Any) -> Any:
                own = unflattened(number, axes.sources)
                taken = [*before, *own, *behind]
                row = places[tuple(taken if everywhere else own)]
                to = [*before, *unflattened(row, axes.rows), *behind]
                value = values[_aligned(values.shape, taken)]
                stored = tirx.BufferStore(result, result[tuple(to)] + value if add else value, to)
                return tirx.IfThenElse(row >= 0, stored, None)

            return loop("source", math.prod(axes.sources), one)

        columns = math.prod((*axes.outer, *axes.inner))
        return [loop("element", math.prod(axes.result), copied), loop("column", columns, scattered)]

    operands = [place, source, *([] if base is None else [base])]
    return in_order(axes.result, dtype, operands, loops, contiguous=inner, name=name)


def scatter_onnx(
    graph: OnnxWriter, axes: ScatterAxes, base: OnnxValue | None, place: str, source: OnnxValue, *, add: bool
) -> str:
    """The nodes; arguments as of ``scatter``, but ``place`` is int64 and holds no -1.

    ``ScatterElements`` takes its sources one after another, while ``ScatterND`` adds from several threads at once.
    """
    columns = [math.prod(axes.outer), math.prod(axes.rows), math.prod(axes.inner)]
    sources = [columns[0], math.prod(axes.sources), columns[2]]
    shape = graph.constant(sources, "int64")
    lined = graph.constant([1, sources[1], 1], "int64")
    everywhere = graph("Reshape", graph("Expand", source.name, graph.constant(axes.scattered, "int64")), shape)
    flat = graph.constant(columns, "int64")
    if base is None:
        start = graph("Expand", graph.constant(0, source.dtype), flat)
    else:
        start = graph("Reshape", base.name, flat)
    each = graph("Expand", graph("Reshape", place, lined), shape) if math.prod(axes.sources) else place
    reduction = "add" if add else "none"
    result = graph("ScatterElements", start, each, everywhere, axis=1, reduction=reduction)
    return graph("Reshape", result, graph.constant(axes.result, "int64"))


def _aligned(shape: Sequence[Any], index: Sequence[Any]) -> tuple[Any, ...]:
    """Where in a tensor of ``shape`` that is broadcast the element at ``index`` comes from."""
    aligned = index[len(index) - len(shape) :]
    return tuple(0 if int(d) == 1 else i for d, i in zip(shape, aligned, strict=True))
