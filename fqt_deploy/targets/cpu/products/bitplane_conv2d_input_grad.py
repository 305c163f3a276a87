"""Activation-gradient product: the forward tile over spread-out bit-planes, with the kernel turned around."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import te, tirx

from fqt_deploy.ops.lib.packed_words import PANEL, popcount
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.register_tile import (
    arguments_of,
    largest_divisor,
    new_schedule,
    placeholders,
    schedule_helpers,
    schedule_tile,
)


class BitplaneConv2dInputGradRule:
    """Takes ``bitplane_conv2d_input_grad`` with a multiple of 16 input channels."""

    ops: ClassVar[frozenset[str]] = frozenset({"bitplane_conv2d_input_grad"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """One accumulator a plane; outputs that do not exist are planes of zeros, which count nothing."""
        arguments = arguments_of(function)
        if arguments is None or arguments[2] % PANEL:
            return None
        _, _, channels, _, hw, kernel, stride, padding = arguments
        planes, w = placeholders(function)
        n, oh, ow, bits, words = (int(d) for d in planes.shape)
        border = [kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1]]
        extent = [hw[0] + kernel[0] - 1, hw[1] + kernel[1] - 1]

        def source(i: Any, h: Any, v: Any, p: Any, k: Any) -> Any:
            y, z = h - border[0], v - border[1]
            aligned = tirx.all(tirx.floormod(y, stride[0]).equal(0), tirx.floormod(z, stride[1]).equal(0))
            y, z = tirx.floordiv(y, stride[0]), tirx.floordiv(z, stride[1])
            return tirx.if_then_else(tirx.all(aligned, y >= 0, y < oh, z >= 0, z < ow), planes[i, y, z, p, k], 0)

        spread = te.compute((n, *extent, bits, words), source, name="spread")
        plane, word = te.reduce_axis((0, bits), "plane"), te.reduce_axis((0, words), "word")
        codes = te.compute(
            (n, *extent),
            lambda i, h, v: te.sum(popcount(spread[i, h, v, plane, word]) << plane, axis=[plane, word]),
            name="codes",
        )
        a, b = te.reduce_axis((0, kernel[0]), "a"), te.reduce_axis((0, kernel[1]), "b")
        offset = te.compute((n, *hw), lambda i, h, v: te.sum(codes[i, h + a, v + b], axis=[a, b]), name="offset")
        kh, kw = te.reduce_axis((0, kernel[0]), "kh"), te.reduce_axis((0, kernel[1]), "kw")
        k = te.reduce_axis((0, words), "k")

        def shared(i: Any, h: Any, v: Any, p: Any, c: Any) -> Any:
            tap = (kernel[0] - 1 - kh) * kernel[1] + (kernel[1] - 1 - kw)
            weight = w[c // PANEL, tap * words + k, c % PANEL]
            return te.sum(popcount(spread[i, h + kh, v + kw, p, k] & weight), axis=[kh, kw, k])

        total = te.compute((n, *hw, bits, channels), shared, name="total")

        def finish(i: Any, h: Any, v: Any, c: Any) -> Any:
            value: Any = 0 - offset[i, h, v]
            for p in range(bits):
                value = value + (total[i, h, v, p, c] << (p + 1))
            return value

        result = te.compute((n, *hw, channels), finish, name="result")
        schedule = new_schedule([planes, w, result])
        rows = largest_divisor(hw[1], max(1, min(8, features.accumulators // bits)))
        panels = largest_divisor(channels // PANEL, max(1, features.accumulators // (rows * bits)))
        schedule_tile(
            schedule,
            schedule.get_sblock("total"),
            schedule.get_sblock("result"),
            rows,
            panels,
            unrolled=0,
            inner_axes=1,
        )
        schedule_helpers(schedule, ("spread", "codes", "offset"))
        return schedule.mod["main"]
