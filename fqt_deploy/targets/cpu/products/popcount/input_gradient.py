"""Activation-gradient product by popcount: the forward tile over spread-out bit-planes, the kernel turned around."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import te, tirx

from fqt_deploy.ops.lib.packed_words import PANEL, popcount
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.form import POPCOUNT
from fqt_deploy.targets.cpu.register_tile import largest_divisor, new_schedule, schedule_helpers, schedule_tile
from fqt_deploy.targets.products import BitInputGradient
from fqt_deploy.targets.tuning_log import Tile


class PopcountInputGradient:
    """The form by popcount: one accumulator a plane; gradients that do not exist are zeros, which count nothing."""

    name: ClassVar[str] = POPCOUNT

    def accepts(self, product: BitInputGradient, features: CpuFeatures) -> bool:
        """Whether the product has whole panels; any processor can count bits."""
        return product.has_whole_panels

    def tiles(self, product: BitInputGradient, features: CpuFeatures) -> tuple[Tile, ...]:
        """Positions and vectors of 16 channels, as many as there are accumulators for all planes."""
        rows = largest_divisor(product.image[1], max(1, min(8, features.accumulators // product.bits)))
        panels = largest_divisor(product.panels, max(1, features.accumulators // (rows * product.bits)))
        return ((rows, panels),)

    def kernel(self, product: BitInputGradient, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """Bits shared by every plane and the weight, weighed and added, less the sum of the codes."""
        p = product
        planes = te.placeholder((p.samples, *p.output, p.bits, p.words), "int32", name="operand0")
        w = te.placeholder((p.panels, p.contraction, PANEL), "int32", name="operand1")
        spread = _spread(planes, p)
        offset = _code_sums(spread, p)
        kh, kw = te.reduce_axis((0, p.kernel[0]), "kh"), te.reduce_axis((0, p.kernel[1]), "kw")
        k = te.reduce_axis((0, p.words), "k")

        def shared(i: Any, h: Any, v: Any, plane: Any, c: Any) -> Any:
            tap = (p.kernel[0] - 1 - kh) * p.kernel[1] + (p.kernel[1] - 1 - kw)
            weight = w[c // PANEL, tap * p.words + k, c % PANEL]
            return te.sum(popcount(spread[i, h + kh, v + kw, plane, k] & weight), axis=[kh, kw, k])

        total = te.compute((p.samples, *p.image, p.bits, p.columns), shared, name="total")

        def finish(i: Any, h: Any, v: Any, c: Any) -> Any:
            value: Any = 0 - offset[i, h, v]
            for plane in range(p.bits):
                value = value + (total[i, h, v, plane, c] << (plane + 1))
            return value

        schedule = new_schedule([planes, w, te.compute((p.samples, *p.image, p.columns), finish, name="result")])
        schedule_tile(
            schedule,
            schedule.get_sblock("total"),
            schedule.get_sblock("result"),
            largest_divisor(p.image[1], tile[0]),
            largest_divisor(p.panels, tile[1]),
            unrolled=0,
            inner_axes=1,
        )
        schedule_helpers(schedule, ("spread", "codes", "offset"))
        return schedule.mod["main"]


def _spread(planes: te.Tensor, p: BitInputGradient) -> te.Tensor:
    """Planes of every position that some result reads; zeros where no gradient is."""
    extent = [image + kernel - 1 for image, kernel in zip(p.image, p.kernel, strict=True)]

    def source(i: Any, h: Any, v: Any, plane: Any, k: Any) -> Any:
        y, z = h - p.border[0], v - p.border[1]
        aligned = tirx.all(tirx.floormod(y, p.stride[0]).equal(0), tirx.floormod(z, p.stride[1]).equal(0))
        y, z = tirx.floordiv(y, p.stride[0]), tirx.floordiv(z, p.stride[1])
        exists = tirx.all(aligned, y >= 0, y < p.output[0], z >= 0, z < p.output[1])
        return tirx.if_then_else(exists, planes[i, y, z, plane, k], 0)

    return te.compute((p.samples, *extent, p.bits, p.words), source, name="spread")


def _code_sums(spread: te.Tensor, p: BitInputGradient) -> te.Tensor:
    """The sums of all codes that each result is made of: [sample, row, column]."""
    plane, word = te.reduce_axis((0, p.bits), "plane"), te.reduce_axis((0, p.words), "word")
    codes = te.compute(
        spread.shape[:3],
        lambda i, h, v: te.sum(popcount(spread[i, h, v, plane, word]) << plane, axis=[plane, word]),
        name="codes",
    )
    a, b = te.reduce_axis((0, p.kernel[0]), "a"), te.reduce_axis((0, p.kernel[1]), "b")
    return te.compute((p.samples, *p.image), lambda i, h, v: te.sum(codes[i, h + a, v + b], axis=[a, b]), name="offset")
