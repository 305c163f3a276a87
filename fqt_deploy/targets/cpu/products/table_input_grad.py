"""Activation-gradient product by table: the tables of a band of gradient rows are built once and used for every tap."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.register_tile import arguments_of, largest_divisor
from fqt_deploy.targets.cpu.products.table_lookup import (
    HALVES,
    WORDS,
    add_products,
    can_look_up,
    subset_sums,
)

BAND_BYTES = 1 << 19
"""Tables of one band: they are read from the second-level cache."""


class TableInputGradRule:
    """Takes ``bitplane_conv2d_input_grad`` with a multiple of 16 input channels where a table is used often enough."""

    ops: ClassVar[frozenset[str]] = frozenset({"bitplane_conv2d_input_grad"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """A hand-written loop nest; gradients that do not exist, between strides or in padding, are empty tables."""
        arguments = arguments_of(function)
        samples, oh, ow, bits, words = (int(d) for d in function.params[0].shape)
        if arguments is None or arguments[2] % PANEL:
            return None
        _, _, channels, _, hw, kernel, stride, padding = arguments
        if not can_look_up(features, bits, kernel[0] * kernel[1] * channels // PANEL):
            return None
        rows = next(r for r in (8, 4, 2, 1) if hw[1] % r == 0 or (r % hw[1] == 0 and hw[0] % (r // hw[1]) == 0))
        panels = largest_divisor(channels // PANEL, features.accumulators // rows)
        width = hw[1] + kernel[1] - 1
        row_bytes = width * words * HALVES * 64
        tile_height = max(1, rows // hw[1])
        band = max(
            b for b in range(1, hw[0] + 1)
            if hw[0] % b == 0 and b % tile_height == 0
            and (b == tile_height or (b + kernel[0] - 1) * row_bytes <= BAND_BYTES)
        )  # fmt: skip
        return _product(samples, [oh, ow], bits, words, channels, hw, kernel, stride, padding, rows, panels, band)


def _product(
    samples: int, out: list[int], bits: int, words: int, channels: int, hw: list[int],
    kernel: list[int], stride: list[int], padding: list[int], rows: int, panels: int, band: int,
) -> tirx.PrimFunc:  # fmt: skip
    """The kernel with ``rows`` positions times ``panels`` panels in a tile and ``band`` image rows in a band."""
    height, width = band + kernel[0] - 1, hw[1] + kernel[1] - 1
    border = [kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1]]
    bands, per_row, taps = hw[0] // band, min(rows, hw[1]), kernel[0] * kernel[1]
    tiles = band * hw[1] // rows

    def code_sum(planes: Any, n: Any, y: Any, z: Any, word: Any) -> Any:
        total: Any = tirx.popcount(planes[n, y, z, 0, word])
        for p in range(1, bits):
            total = total + (tirx.popcount(planes[n, y, z, p, word]) << p)
        return total

    def tap_sum(sums: Any, h: Any, v: Any) -> Any:
        total: Any = sums[h, v]
        for tap in range(1, taps):
            total = total + sums[h + tap // kernel[1], v + tap % kernel[1]]
        return total

    @script.macro
    def add_words(
        tables: Any, weight: Any, total: Any, panel: Any, tile: Any, kh: Any, kw: Any, w: Any, together: Any
    ) -> None:
        """Add the products of ``together`` words from ``w`` on of one tap of a tile."""
        first: T.let = ((kernel[0] - 1 - kh) * kernel[1] + kernel[1] - 1 - kw) * words + w
        h: T.let = tile * rows // hw[1] + kh
        v: T.let = tile * rows % hw[1] + kw
        add_products(
            total,
            rows,
            panels,
            together,
            lambda p, u: weight[panel + p, first + u, T.ramp(0, 1, PANEL)],
            lambda r, u, half: tables[h + r // per_row, v + r % per_row, w + u, half, T.ramp(0, 1, 64)],
        )

    @script.prim_func(s_tir=True)
    def product(
        planes: T.Buffer((samples, out[0], out[1], bits, words), "int32"),
        weight: T.Buffer((channels // PANEL, taps * words, PANEL), "int32"),
        result: T.Buffer((samples, hw[0], hw[1], channels), "int32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        for job in T.parallel(samples * bands):
            tables = T.alloc_buffer((height, width, words, HALVES, 64), "int8")
            sums = T.alloc_buffer((height, width), "int32")
            for h, v in T.grid(height, width):
                y: T.let = (job % bands) * band + h - border[0]
                z: T.let = v - border[1]
                sums[h, v] = 0
                if (
                    y >= 0 and y < out[0] * stride[0] and z >= 0 and z < out[1] * stride[1]
                    and y % stride[0] == 0 and z % stride[1] == 0
                ):  # fmt: skip
                    for w in T.serial(words):
                        for half in T.unroll(HALVES):
                            tables[h, v, w, half, T.ramp(0, 1, 64)] = subset_sums(
                                [planes[job // bands, y // stride[0], z // stride[1], p, w] for p in range(bits)], half
                            )
                        sums[h, v] = sums[h, v] + code_sum(planes, job // bands, y // stride[0], z // stride[1], w)
                else:
                    for w, half in T.grid(words, HALVES):
                        tables[h, v, w, half, T.ramp(0, 1, 64)] = T.broadcast(T.int8(0), 64)
            for group, tile in T.grid(channels // (PANEL * panels), tiles):
                total = T.alloc_buffer((rows, panels, PANEL), "int32")
                for r in T.unroll(rows):
                    for p in T.unroll(panels):
                        total[r, p, T.ramp(0, 1, PANEL)] = T.broadcast(0, PANEL)
                for kh, kw in T.grid(kernel[0], kernel[1]):
                    for pair in T.serial(words // WORDS):
                        add_words(tables, weight, total, group * panels, tile, kh, kw, pair * WORDS, WORDS)
                    if words % WORDS == 1:
                        add_words(tables, weight, total, group * panels, tile, kh, kw, words - 1, 1)
                for r in T.unroll(rows):
                    h: T.let = tile * rows // hw[1] + r // per_row
                    v: T.let = tile * rows % hw[1] + r % per_row
                    offset: T.let = tap_sum(sums, h, v)
                    for p in T.unroll(panels):
                        result[
                            job // bands, (job % bands) * band + h, v, T.ramp((group * panels + p) * PANEL, 1, PANEL)
                        ] = total[r, p, T.ramp(0, 1, PANEL)] * T.broadcast(2, PANEL) - T.broadcast(offset, PANEL)

    return product
