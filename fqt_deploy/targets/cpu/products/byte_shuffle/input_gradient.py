"""Activation-gradient product by byte shuffles: nibbles of weights look up sums of the gradient's codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.byte_shuffle.code_convolution import (
    CodeConvolution,
    band_rows,
    convolve,
)
from fqt_deploy.targets.cpu.products.byte_shuffle.nibble_table import ENTRIES, NIBBLES, ByteShuffle, shuffles_pay
from fqt_deploy.targets.cpu.products.byte_shuffle.shuffled_convolution import ShuffleForm, job_extents
from fqt_deploy.targets.products import BitInputGradient, Extents
from fqt_deploy.targets.tuning_log import Tile


class ShuffleInputGradient(ShuffleForm[BitInputGradient]):
    """Bands of image rows are jobs; where no gradient is, between strides or in padding, tables are empty."""

    choices: ClassVar[tuple[Tile, ...]] = ((4, 16), (4, 4), (4, 32), (2, 16), (2, 32), (1, 16), (1, 32))
    """Tiles worth measuring: registers of columns that look up one table, positions that read a block of the weight in
    turn.
    """

    def accepts(self, product: BitInputGradient, features: CpuFeatures) -> bool:
        """Whole panels, where a byte shuffle is the best there is for so many bits."""
        return product.has_whole_panels and shuffles_pay(features, product.bits)

    def cut(self, product: BitInputGradient, tile: Tile, features: CpuFeatures) -> GradientConvolution:
        """The product cut into bands with as many rows in a band as tables in the cache reach for."""
        (height, width), (kernel_h, kernel_w) = product.image, product.kernel
        row_bytes = (width + kernel_w - 1) * product.words * NIBBLES * ENTRIES
        band = band_rows(height, lambda rows: (rows + kernel_h - 1) * row_bytes)
        shuffle = ByteShuffle.for_columns(product.columns, features)
        return GradientConvolution(product, job_extents(product, band, width), shuffle, tile)

    def kernel(self, product: BitInputGradient, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """The kernel of the product that is cut so."""
        return _kernel(self.cut(product, tile, features))


@dataclass(frozen=True)
class GradientConvolution(CodeConvolution[BitInputGradient]):
    """The transposed convolution of a gradient's codes: tables are of positions of the spread gradient."""

    @property
    def coded(self) -> Extents:
        """Rows and columns of the gradient."""
        return self.product.output

    @property
    def result(self) -> Extents:
        """Rows and columns of the image."""
        return self.product.image

    @property
    def extent(self) -> Extents:
        """Rows and columns of the spread gradient that a job reads."""
        return self.job[0] + self.product.kernel[0] - 1, self.job[1] + self.product.kernel[1] - 1

    def source(self, index: Any, h: Any, v: Any) -> tuple[Any, Any, Any, Any]:
        """Where row ``h``, column ``v`` of what a job reads lies in the gradient: one is every ``stride``."""
        if self.is_flat:
            return *self.place(index, v), v < self.columns_of(index)
        sample, first, _ = self.place(index, 0)
        row, column = first + h - self.product.border[0], v - self.product.border[1]
        down, across = self.product.stride
        return sample, row // down, column // across, self.product.has_gradient(row, column)

    def read(self, position: Any, tap: Any) -> tuple[Any, Any]:
        """Row and column of the gradient that a tap of a position reads."""
        row, column = self.product.tap(tap)
        return position // self.job[1] + row, position % self.job[1] + column

    def weight_tap(self, tap: Any) -> Any:
        """The number of the tap of the kernel, which is turned around."""
        return self.product.taps - 1 - tap

    def level(self, value: Any, constants: Any, at: tuple[Any, Any, Any], lanes: Any) -> Any:
        """The sums of codes times signs are the result."""
        return value


def _kernel(c: GradientConvolution) -> tirx.PrimFunc:
    """The TIR function of the gradient that is cut as ``c`` says."""

    @script.prim_func(s_tir=True)
    def product(
        planes: T.Buffer(c.planes_shape, "int32"),
        weight: T.Buffer(c.weight_shape, "int32"),
        result: T.Buffer(c.result_shape, "int32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        convolve(planes, weight, None, result, c)

    return product
