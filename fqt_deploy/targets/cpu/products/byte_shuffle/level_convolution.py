"""Convolution of levels by byte shuffles: nibbles of weights look up sums of the activations' codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.border_signs import BorderSigns, sum_signs
from fqt_deploy.targets.cpu.products.byte_shuffle.code_convolution import (
    CodeConvolution,
    band_rows,
    convolve,
)
from fqt_deploy.targets.cpu.products.byte_shuffle.nibble_table import ENTRIES, NIBBLES, ByteShuffle, shuffles_pay
from fqt_deploy.targets.cpu.products.byte_shuffle.shuffled_convolution import ShuffleForm, job_extents
from fqt_deploy.targets.cpu.products.digits import digits_of
from fqt_deploy.targets.products import Extents, LevelConvolution
from fqt_deploy.targets.tuning_log import Tile

JOBS = 16
"""Number of independent pieces to cut a product into: work for that many threads."""


class ShuffleLevelConvolution(ShuffleForm[LevelConvolution]):
    """Bands of rows of the result are jobs; tables are of the padded image, and empty in its borders."""

    choices: ClassVar[tuple[Tile, ...]] = ((4, 16), (4, 4), (4, 8), (4, 32), (2, 16), (2, 32), (1, 16), (1, 32))
    """Tiles worth measuring: registers of columns that look up one table, positions that read a block of the weight in
    turn.
    """

    def accepts(self, product: LevelConvolution, features: CpuFeatures) -> bool:
        """Whole panels and digits, where a byte shuffle is the best there is; ARM counts one plane as fast."""
        digits = digits_of(product.bits)
        pays = shuffles_pay(features, product.bits // digits) and (features.is_x86 or product.bits > 1)
        return product.has_whole_panels and product.bits % digits == 0 and pays

    def cut(self, product: LevelConvolution, tile: Tile, features: CpuFeatures) -> WindowConvolution:
        """The product cut into bands with as many rows as tables in the cache reach for, if enough jobs remain."""
        (height, width), kernel, stride = product.output, product.kernel, product.stride
        row_bytes = ((width - 1) * stride[1] + kernel[1]) * digits_of(product.bits) * product.words * NIBBLES * ENTRIES
        band = band_rows(
            height, lambda rows: ((rows - 1) * stride[0] + kernel[0]) * row_bytes, product.samples * height // JOBS
        )
        shuffle = ByteShuffle.for_columns(product.columns, features)
        return WindowConvolution(product, job_extents(product, band, width), shuffle, tile)

    def kernel(self, product: LevelConvolution, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """The kernel of the product that is cut so."""
        return _kernel(self.cut(product, tile, features))


@dataclass(frozen=True)
class WindowConvolution(CodeConvolution[LevelConvolution]):
    """The convolution of an image of codes: tables are of positions of the padded image."""

    @property
    def coded(self) -> Extents:
        """Rows and columns of the image."""
        return self.product.image

    @property
    def result(self) -> Extents:
        """Rows and columns of the result."""
        return self.product.output

    @property
    def extent(self) -> Extents:
        """Rows and columns of the padded image that a job reads."""
        height, width = (
            (rows - 1) * step + taps
            for rows, step, taps in zip(self.job, self.product.stride, self.product.kernel, strict=True)
        )
        return height, width

    @property
    def borders(self) -> BorderSigns:
        """The kinds of borders of its positions."""
        return BorderSigns(self.product)

    def source(self, index: Any, h: Any, v: Any) -> tuple[Any, Any, Any, Any]:
        """Where row ``h``, column ``v`` of what a job reads lies in the image, and whether it is inside."""
        if self.is_flat:
            return *self.place(index, v), v < self.columns_of(index)
        p = self.product
        sample, first, _ = self.place(index, 0)
        row, column = first * p.stride[0] + h - p.padding[0], v - p.padding[1]
        inside = tirx.all(row >= 0, row < p.image[0], column >= 0, column < p.image[1])
        return sample, row, column, inside

    def read(self, position: Any, tap: Any) -> tuple[Any, Any]:
        """Row and column of the padded image that a tap of a position reads."""
        (down, across), (row, column) = self.product.stride, self.product.tap(tap)
        return position // self.job[1] * down + row, position % self.job[1] * across + column

    def weight_tap(self, tap: Any) -> Any:
        """The tap itself."""
        return tap

    def level(self, value: Any, constants: Any, at: tuple[Any, Any, Any], lanes: Any) -> Any:
        """The sums of levels, from those of codes."""
        return self.borders.level(value, constants, self.borders.kind(at[1], at[2]), lanes)


def _kernel(c: WindowConvolution) -> tirx.PrimFunc:
    """The TIR function of the convolution that is cut as ``c`` says."""

    @script.prim_func(s_tir=True)
    def product(
        planes: T.Buffer(c.planes_shape, "int32"),
        weight: T.Buffer(c.weight_shape, "int32"),
        result: T.Buffer(c.result_shape, c.product.dtype),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        constants = T.alloc_buffer(c.borders.shape, "int32")
        if c.product.signed:
            for panel in T.parallel(c.product.panels):
                sum_signs(c.borders, weight, constants, panel)
        convolve(planes, weight, constants, result, c)

    return product
