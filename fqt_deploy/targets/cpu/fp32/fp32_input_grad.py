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

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.fp32.fp32_convolution import Product, padded_rows, schedule_product, tiled_product
from fqt_deploy.targets.cpu.products.register_tile import (
    arguments_of,
    new_schedule,
    placeholders,
    schedule_helpers,
    schedule_padding,
)


class Fp32InputGradRule:
    """Takes ``conv2d_input_grad`` with a multiple of 16 input channels."""

    ops: ClassVar[frozenset[str]] = frozenset({"conv2d_input_grad"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """A product for each phase, then all in their places."""
        arguments = arguments_of(function)
        extents = [int(d) for d in function.params[-1].shape]
        if arguments is None or extents[3] % PANEL:
            return None
        stride, padding = arguments[3:]
        gradient, w = placeholders(function)
        products = _products(gradient, w, stride, padding, extents, features.accumulators)
        result = products[0, 0].result if stride == [1, 1] else _interleaved(products, stride, extents)
        schedule = new_schedule([gradient, w, result])
        for product in products.values():
            schedule_product(schedule, product)
        schedule_padding(schedule, schedule.get_sblock("rows"))
        if stride != [1, 1]:
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
    gradient: te.Tensor, w: te.Tensor, stride: list[int], padding: list[int], extents: list[int], accumulators: int
) -> dict[tuple[int, int], Product]:
    """Products by row and column of their phase; none for a phase without taps."""
    n, height, width, outputs = extents
    kernel, positions = [int(d) for d in w.shape[2:]], [int(d) for d in gradient.shape[1:3]]
    axes = [
        [_phase(offset, *axis) for offset in range(min(axis[1], axis[3]))]
        for axis in zip(kernel, stride, padding, (height, width), strict=True)
    ]
    before = [max(0, *(phase.taps - 1 - phase.at for phase in axis)) for axis in axes]
    after = [
        max(0, *(phase.at + phase.positions - extent for phase in axis))
        for axis, extent in zip(axes, positions, strict=True)
    ]
    rows = padded_rows(gradient, before, after, "rows")
    products = {}
    for phases in itertools.product(*axes):
        y, z = phases
        if not y.taps or not z.taps:
            continue

        def weight(kh: Any, kw: Any, c: Any, o: Any, y: _Phase = y, z: _Phase = z) -> Any:
            turned = (p.first + s * (p.taps - 1 - tap) for p, s, tap in zip((y, z), stride, (kh, kw), strict=True))
            return w[c, o, *turned]

        products[y.offset, z.offset] = tiled_product(
            rows,
            int(gradient.shape[3]),
            weight,
            [y.taps, z.taps],
            [1, 1],
            [border + p.at - p.taps + 1 for border, p in zip(before, phases, strict=True)],
            [n, y.positions, z.positions, outputs],
            accumulators,
            "" if stride == [1, 1] else f"_{y.offset}_{z.offset}",
        )
    return products


def _interleaved(products: dict[tuple[int, int], Product], stride: list[int], extents: list[int]) -> te.Tensor:
    """All results in their places; zero at positions that no output reads."""

    def element(n: Any, y: Any, z: Any, o: Any) -> Any:
        value: Any = tirx.const(0.0, "float32")
        for (row, column), product in products.items():
            here = tirx.all(tirx.floormod(y, stride[0]).equal(row), tirx.floormod(z, stride[1]).equal(column))
            own = product.result[n, tirx.floordiv(y, stride[0]), tirx.floordiv(z, stride[1]), o]
            value = tirx.if_then_else(here, own, value)
        return value

    return te.compute(extents, element, name="result")
