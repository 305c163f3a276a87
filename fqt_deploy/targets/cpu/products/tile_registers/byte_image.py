"""The operand of a convolution as bytes in the cache, where tile registers load sixteen positions at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.products.tile_registers.byte_convolution_cut import ByteConvolution, Cut, image_extent
from fqt_deploy.targets.cpu.products.tile_registers.registers import TILE_DEPTH, TILE_LANES


@dataclass(frozen=True)
class ConvolutionImage:
    """The image of one job, in rows of bytes: a band of one or more samples, or samples as they are, without border.

    Attributes:
        c: the convolution.
        cut: how it is cut.
    """

    c: ByteConvolution
    cut: Cut

    @property
    def height(self) -> int:
        """Number of rows of one sample's image."""
        c = self.c
        return (
            c.source_hw[0] if self.cut.along_samples else image_extent(self.cut.band, c.stride[0], c.product.kernel[0])
        )

    @property
    def width(self) -> int:
        """Number of columns of one sample's image."""
        c = self.c
        return (
            c.source_hw[1] if self.cut.along_samples else image_extent(c.output_hw[1], c.stride[1], c.product.kernel[1])
        )

    @property
    def lanes(self) -> int:
        """Number of 32-bit lanes that one position takes."""
        return self.c.product.depth // 4

    @property
    def pairs(self) -> int:
        """Number of tiles along the channels: pairs of packed words."""
        return self.c.product.depth // TILE_DEPTH

    @property
    def per_sample(self) -> int:
        """Number of 32-bit lanes that one sample takes."""
        # the rows of a tile along samples would else meet in the same set of the first-level cache
        return self.height * self.width * self.lanes + (TILE_LANES if self.cut.along_samples else 0)

    @property
    def size(self) -> int:
        """Number of 32-bit lanes that the image of a job takes."""
        return self.cut.group * self.per_sample

    @property
    def per_row(self) -> int:
        """Number of tiles of rows along a row of the result, of one sample or of one group of samples in a tile."""
        return self.c.output_hw[1] if self.cut.along_samples else self.c.output_hw[1] // self.cut.rows

    @property
    def sample_tiles(self) -> int:
        """Number of tiles of rows across the samples of a job."""
        return self.cut.group // self.cut.rows if self.cut.along_samples else self.cut.group

    @property
    def tiles(self) -> int:
        """Number of tiles of rows in a job."""
        return self.sample_tiles * self.cut.band * self.per_row

    @property
    def row_bytes(self) -> int:
        """Distance between the rows of a tile in the image, in bytes."""
        return 4 * self.per_sample if self.cut.along_samples else self.c.stride[1] * self.c.product.depth

    def position_begin(self, g: Any, h: Any, v: Any) -> Any:
        """The lane of the image where position ``h``, ``v`` of sample ``g`` of the job begins."""
        return g * self.per_sample + (h * self.width + v) * self.lanes

    def source(self, axis: int, position: Any, tap: Any) -> tuple[Any, Any]:
        """Whether a tap of a position of the result reads the operand along an axis, and where."""
        c = self.c
        at, step = position * c.stride[axis] + tap - c.border[axis], c.spread[axis]
        inside = tirx.all(at >= 0, at < c.source_hw[axis] * step)
        return (inside, at) if step == 1 else (tirx.all(inside, at % step == 0), at // step)

    def place(self, tile: Any, row: Any) -> tuple[Any, Any, Any]:
        """Sample of the job, row of the band and column of one row of a tile; tiles of one position are neighbours."""
        if self.cut.along_samples:
            position = tile // self.sample_tiles
            sample = tile % self.sample_tiles * self.cut.rows + row
            return sample, position // self.per_row, position % self.per_row
        band, column = self.cut.band, tile % self.per_row * self.cut.rows + row
        return tile // (self.per_row * band), tile // self.per_row % band, column

    def reads(self, tile: Any, kh: Any, kw: Any) -> Any:
        """Whether a tap of a tile reads anything."""
        _, y, x = self.place(tile, 0)
        if self.cut.along_samples:
            return tirx.all(self.source(0, y, kh)[0], self.source(1, x, kw)[0])
        return tirx.const(True, "bool")

    def tile_begin(self, tile: Any, kh: Any, kw: Any) -> Any:
        """The lane of the image where the first row of a tile begins, for one tap."""
        g, y, x = self.place(tile, 0)
        h, v = y * self.c.stride[0] + kh, x * self.c.stride[1] + kw
        if self.cut.along_samples:
            h, v = self.source(0, y, kh)[1], self.source(1, x, kw)[1]
        return self.position_begin(g, h, v)


@script.macro
def expand_image(image: ConvolutionImage, operand: Any, expanded: Any, sample: Any, first: Any) -> None:
    """Fill the image of a job, from ``sample`` and row ``first`` of the result on; what does not exist is zero."""
    for g, h, v in T.grid(image.cut.group, image.height, image.width):
        at: T.let = image.position_begin(g, h, v)
        if image.cut.along_samples:
            for u in T.serial(image.pairs):
                expanded[T.ramp(at + u * TILE_LANES, 1, TILE_LANES)] = image.c.row(operand, sample + g, h, v, u)
        else:
            if image.source(0, first, h)[0] and image.source(1, 0, v)[0]:
                for u in T.serial(image.pairs):
                    expanded[T.ramp(at + u * TILE_LANES, 1, TILE_LANES)] = image.c.row(
                        operand, sample + g, image.source(0, first, h)[1], image.source(1, 0, v)[1], u
                    )
            else:
                for u in T.serial(image.pairs):
                    expanded[T.ramp(at + u * TILE_LANES, 1, TILE_LANES)] = T.broadcast(0, TILE_LANES)
