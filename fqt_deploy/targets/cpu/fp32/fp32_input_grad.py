"""Input gradients of fp32 convolutions: convolutions of the gradient with the kernel turned around, in register tiles.

With strides, only each ``stride``-th tap of the kernel falls on a gradient: which ones depends on the position's phase,
its remainder by the stride. Each phase is a convolution without stride with these taps, and nothing is multiplied by
the zeros between gradients.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import te, tirx

from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.fp32.fp32_convolution import (
    Product,
    padded_rows,
    schedule_product,
    schedule_rows,
    tiled_product,
)
from fqt_deploy.targets.cpu.register_tile import (
    lanes_of,
    new_schedule,
    placeholders,
    schedule_helpers,
)
from fqt_deploy.targets.products import Convolution, convolution_of


class Fp32InputGradRule:
    """Takes ``conv2d_input_grad`` with a multiple of 4 input channels."""

    ops: ClassVar[frozenset[str]] = frozenset({"conv2d_input_grad", "grouped_conv_input_grad"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """A product for each phase, then all in their places."""
        g, weight, result = function.params
        layer = convolution_of(function, image=result, output=g, kernel=weight)
        columns = int(result.shape[-1])
        if layer is None or lanes_of(columns) is None:
            return None
        gradient, w = placeholders(function)
        products = _products(gradient, w, layer, columns, features.accumulators)
        strided = layer.stride != (1, 1)
        result = _interleaved(products, layer, columns) if strided else products[0, 0].result
        schedule = new_schedule([gradient, w, result])
        for product in products.values():
            schedule_product(schedule, product)
        schedule_rows(schedule, "rows")
        if strided:
            schedule_helpers(schedule, ("result",))
        return schedule.mod["main"]


@dataclass(frozen=True)
class _Phase:
    """Image positions of one remainder along one axis.

    Attributes:
        offset: the remainder.
        positions: how many there are.
        first: the first tap that falls on a gradient there; the others are ``stride`` apart.
        taps: how many there are.
        at: which gradient the first tap falls on, at the first position.
    """

    offset: int
    positions: int
    first: int
    taps: int
    at: int


def _phase(offset: int, kernel: int, stride: int, padding: int, extent: int) -> _Phase:
    first = (offset + padding) % stride
    taps = max(0, -(-(kernel - first) // stride))
    return _Phase(offset, -(-(extent - offset) // stride), first, taps, (offset + padding) // stride)


def _products(
    gradient: te.Tensor, w: te.Tensor, layer: Convolution, columns: int, accumulators: int
) -> dict[tuple[int, int], Product]:
    """Products by row and column of their phase; none for a phase without taps."""
    rows_phases, column_phases = (
        [_phase(offset, kernel, stride, padding, extent) for offset in range(min(stride, extent))]
        for kernel, stride, padding, extent in zip(layer.kernel, layer.stride, layer.padding, layer.image, strict=True)
    )
    before = _border_before(rows_phases), _border_before(column_phases)
    after = _border_after(rows_phases, layer.output[0]), _border_after(column_phases, layer.output[1])
    rows = padded_rows(gradient, before, after, "rows")
    products = {}
    for y, z in itertools.product(rows_phases, column_phases):
        if not y.taps or not z.taps:
            continue

        def weight(kh: Any, kw: Any, c: Any, o: Any, y: _Phase = y, z: _Phase = z) -> Any:
            down, across = layer.stride
            return w[c, o, y.first + down * (y.taps - 1 - kh), z.first + across * (z.taps - 1 - kw)]

        products[y.offset, z.offset] = tiled_product(
            rows,
            int(gradient.shape[3]),
            weight,
            (y.taps, z.taps),
            (1, 1),
            (before[0] + y.at - y.taps + 1, before[1] + z.at - z.taps + 1),
            [layer.samples, y.positions, z.positions, columns],
            accumulators,
            "" if layer.stride == (1, 1) else f"_{y.offset}_{z.offset}",
        )
    return products


def _border_before(phases: list[_Phase]) -> int:
    """Zeros that an axis of the gradient needs in front."""
    return max(0, *(phase.taps - 1 - phase.at for phase in phases))


def _border_after(phases: list[_Phase], extent: int) -> int:
    """Zeros that an axis of so many gradients needs behind."""
    return max(0, *(phase.at + phase.positions - extent for phase in phases))


def _interleaved(products: dict[tuple[int, int], Product], layer: Convolution, columns: int) -> te.Tensor:
    """All results in their places; zero at positions that no output reads."""
    down, across = layer.stride

    def element(n: Any, y: Any, z: Any, o: Any) -> Any:
        value: Any = tirx.const(0.0, "float32")
        for (row, column), product in products.items():
            here = tirx.all(tirx.floormod(y, down).equal(row), tirx.floormod(z, across).equal(column))
            own = product.result[n, tirx.floordiv(y, down), tirx.floordiv(z, across), o]
            value = tirx.if_then_else(here, own, value)
        return value

    return te.compute((layer.samples, *layer.image, columns), element, name="result")
