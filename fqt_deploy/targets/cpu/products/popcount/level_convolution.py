"""Convolution of levels by popcount: the tile of the 1-bit convolution, with an accumulator for each bit-plane.

Zeros around the image are codes of zero, which count nothing. Where levels have signs, a level is twice its code less
the largest one: the sum of the weight's signs over the taps inside of the image, times the largest code, is taken off.
"""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import te, tirx

from fqt_deploy.ops.lib.packed_words import PANEL, popcount
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.form import POPCOUNT
from fqt_deploy.targets.cpu.products.popcount.convolution import Borders, chosen, padded_image, tap_ones
from fqt_deploy.targets.cpu.register_tile import (
    largest_divisor,
    new_schedule,
    schedule_helpers,
    schedule_padding,
    schedule_tile,
)
from fqt_deploy.targets.products import LevelConvolution
from fqt_deploy.targets.tuning_log import Tile


class PopcountLevelConvolution:
    """The form by popcount: bits shared by every plane and the weight, weighed and added, less the sum of the codes."""

    name: ClassVar[str] = POPCOUNT

    def accepts(self, product: LevelConvolution, features: CpuFeatures) -> bool:
        """Whether the product has whole panels; any processor can count bits."""
        return product.has_whole_panels

    def tiles(self, product: LevelConvolution, features: CpuFeatures) -> tuple[Tile, ...]:
        """Positions and vectors of 16 channels, as many as there are accumulators for all planes."""
        rows = largest_divisor(product.output[1], max(1, min(8, features.accumulators // product.bits)))
        panels = largest_divisor(product.panels, max(1, features.accumulators // (rows * product.bits)))
        return ((rows, panels),)

    def kernel(self, product: LevelConvolution, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """Counts of shared bits in registers; sums of codes and constants are computed before."""
        p = product
        (oh, ow), stride = p.output, p.stride
        planes = te.placeholder((p.samples, *p.image, p.bits, p.words), "int32", name="operand0")
        w = te.placeholder((p.panels, p.contraction, PANEL), "int32", name="operand1")
        image = padded_image(planes, p)
        offset = _code_sums(image, p)
        kh, kw = te.reduce_axis((0, p.kernel[0]), "kh"), te.reduce_axis((0, p.kernel[1]), "kw")
        k = te.reduce_axis((0, p.words), "k")

        def shared(i: Any, y: Any, z: Any, plane: Any, o: Any) -> Any:
            weight = w[o // PANEL, (kh * p.kernel[1] + kw) * p.words + k, o % PANEL]
            return te.sum(
                popcount(image[i, y * stride[0] + kh, z * stride[1] + kw, plane, k] & weight), axis=[kh, kw, k]
            )

        total = te.compute((p.samples, oh, ow, p.bits, p.columns), shared, name="total")
        borders = Borders.of(p)
        constants = _constants(w, p, *borders.examples) if p.signed else None

        def finish(i: Any, y: Any, z: Any, o: Any) -> Any:
            value: Any = 0 - offset[i, y, z]
            for plane in range(p.bits):
                value = value + (total[i, y, z, plane, o] << (plane + 1))
            if constants is not None:
                value = 2 * value - borders.at(constants, y, z, o)
            return value.astype(p.dtype)

        schedule = new_schedule([planes, w, te.compute((p.samples, oh, ow, p.columns), finish, name="result")])
        schedule_tile(
            schedule,
            schedule.get_sblock("total"),
            schedule.get_sblock("result"),
            largest_divisor(ow, tile[0]),
            largest_divisor(p.panels, tile[1]),
            unrolled=0,
            inner_axes=1,
        )
        if p.is_padded:
            schedule_padding(schedule, schedule.get_sblock("padded"))
        constant_stages = ("ones", "row_class", "column_class", "constants") if p.signed else ()
        schedule_helpers(schedule, ("codes", "offset", *constant_stages))
        return schedule.mod["main"]


def _code_sums(image: te.Tensor, p: LevelConvolution) -> te.Tensor:
    """The sums of all codes that each result is made of: [sample, row, column]."""
    plane, word = te.reduce_axis((0, p.bits), "plane"), te.reduce_axis((0, p.words), "word")
    codes = te.compute(
        image.shape[:3],
        lambda i, h, v: te.sum(popcount(image[i, h, v, plane, word]) << plane, axis=[plane, word]),
        name="codes",
    )
    a, b = te.reduce_axis((0, p.kernel[0]), "a"), te.reduce_axis((0, p.kernel[1]), "b")
    return te.compute(
        (p.samples, *p.output),
        lambda i, y, z: te.sum(codes[i, y * p.stride[0] + a, z * p.stride[1] + b], axis=[a, b]),
        name="offset",
    )


def _constants(w: te.Tensor, p: LevelConvolution, rows: list[int], columns: list[int]) -> te.Tensor:
    """The largest code times the sum of the signs inside of the image, [row class, column class, channel]."""
    taps = tap_ones(w, p)
    a, b = te.reduce_axis((0, p.kernel[0]), "a"), te.reduce_axis((0, p.kernel[1]), "b")

    def constant(r: Any, c: Any, o: Any) -> Any:
        inside, _, _ = p.input_position((chosen(r, rows), chosen(c, columns)), (a, b))
        signs = (2 * taps[a * p.kernel[1] + b, o] - p.depth) * p.largest_code
        return te.sum(tirx.if_then_else(inside, signs, 0), axis=[a, b])

    return te.compute((len(rows), len(columns), p.columns), constant, name="constants")
