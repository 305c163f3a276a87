"""Convolution in tile registers: an image of bytes in the cache, sixteen rows at a time, times expanded weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.border_signs import sum_signs
from fqt_deploy.targets.cpu.products.form import NO_CHOICE, TILE_REGISTERS
from fqt_deploy.targets.cpu.products.tile_registers.byte_convolution_cut import TILES, ByteConvolution, cut_convolution
from fqt_deploy.targets.cpu.products.tile_registers.byte_image import ConvolutionImage, expand_image
from fqt_deploy.targets.cpu.products.tile_registers.matrix_product import MatrixProduct, cut_matrix, matrix_kernel
from fqt_deploy.targets.cpu.products.tile_registers.registers import (
    TILE,
    TILE_LANES,
    clear_sums,
    configure_tiles,
    expand_weight_columns,
    multiply_one_by_four,
    multiply_two_by_two,
    release_tiles,
    request_tiles,
    store_sums,
)
from fqt_deploy.targets.products import PackedConvolution
from fqt_deploy.targets.tuning_log import Tile

Product = TypeVar("Product", bound=PackedConvolution)

POSITIONS_TO_EXPAND = 256
"""A job of so many positions expands the weights for itself, in its cache; smaller ones share what is expanded once."""


@dataclass(frozen=True)
class _Product(ConvolutionImage):
    """The image of a job, and the blocks of columns that it is multiplied with."""

    @property
    def taps(self) -> int:
        return self.c.product.taps

    @property
    def words(self) -> int:
        return self.c.product.words

    @property
    def panels(self) -> int:
        """Number of panels in a block of columns."""
        return TILES // self.cut.row_tiles

    @property
    def all_blocks(self) -> int:
        return self.c.product.columns // (self.panels * PANEL)

    @property
    def block_jobs(self) -> int:
        """Number of jobs over the same image."""
        return self.all_blocks // self.cut.blocks

    @property
    def block_lanes(self) -> int:
        """Number of 32-bit lanes that the weights of a block take."""
        return self.taps * self.pairs * self.panels * TILE

    @property
    def bands(self) -> int:
        return self.c.output_hw[0] // self.cut.band

    @property
    def own_weights(self) -> bool:
        """Whether each job expands the weights of its blocks, or all are expanded before the first job."""
        return self.cut.group * self.cut.band * self.c.output_hw[1] >= POSITIONS_TO_EXPAND

    @property
    def jobs(self) -> int:
        return self.c.product.samples // self.cut.group * self.bands * self.block_jobs

    def sample(self, job: Any) -> Any:
        """The first sample of a job."""
        return job // (self.bands * self.block_jobs) * self.cut.group

    def first(self, job: Any) -> Any:
        """The first row of the result of a job."""
        return job // self.block_jobs % self.bands * self.cut.band

    def block_columns(self, block: Any) -> Any:
        """The columns of the result of a block."""
        return T.ramp(block * self.panels * PANEL, 1, self.panels * PANEL)

    def block(self, job: Any, b: Any) -> Any:
        """The number of block ``b`` of a job, among all blocks of columns."""
        return job % self.block_jobs * self.cut.blocks + b


@script.macro
def _expand_weight(p: _Product, weight: Any, columns: Any, begin: Any, block: Any, tap: Any) -> None:
    """Expand the tiles of columns of one tap, for one block; ``begin`` is where those of the block begin."""
    for u, panel in T.grid(p.pairs, p.panels):
        word: T.let = (p.taps - 1 - tap if p.c.flipped else tap) * p.words + 2 * u
        expand_weight_columns(
            columns,
            begin + ((tap * p.pairs + u) * p.panels + panel) * TILE,
            p.c.product.weight_words(weight, block * p.panels + panel, word, T.ramp(0, 1, PANEL)),
            p.c.product.weight_words(weight, block * p.panels + panel, word + 1, T.ramp(0, 1, PANEL)),
        )


@script.macro
def _multiply_tap(p: _Product, image: Any, columns: Any, begin: Any, tile: Any, second: Any, kh: Any, kw: Any) -> None:
    """Multiply one tap of one or two tiles of rows with a block of columns."""
    for u in T.serial(p.pairs):
        if p.cut.row_tiles == 1:
            multiply_one_by_four(
                image,
                p.tile_begin(tile, kh, kw) + u * TILE_LANES,
                p.row_bytes,
                columns,
                begin + ((kh * p.c.product.kernel[1] + kw) * p.pairs + u) * p.panels * TILE,
                p.c.instruction,
            )
        else:
            multiply_two_by_two(
                image,
                p.tile_begin(tile, kh, kw) + u * TILE_LANES,
                p.tile_begin(second, kh, kw) + u * TILE_LANES,
                p.row_bytes,
                columns,
                begin + ((kh * p.c.product.kernel[1] + kw) * p.pairs + u) * p.panels * TILE,
                p.c.instruction,
            )


@script.macro
def _finish_row(
    p: _Product, result: Any, sums: Any, constants: Any, sample: Any, first: Any, tile: Any, number: Any, row: Any,
    block: Any,
) -> None:  # fmt: skip
    """Write one row of a tile's sums to its place in the result."""
    g, y, x = p.place(tile, row)
    result[sample + g, first + y, x, p.block_columns(block)] = T.cast(
        p.c.level(
            sums[T.ramp((number * TILE + row * TILE_LANES) * p.panels, 1, p.panels * TILE_LANES)],
            constants, (first + y, x), p.block_columns(block),
        ),
        f"{p.c.dtype}x{p.panels * PANEL}",
    )  # fmt: skip


@script.macro
def _multiply_block(
    p: _Product, image: Any, columns: Any, begin: Any, sums: Any, constants: Any, result: Any, sample: Any, first: Any,
    block: Any,
) -> None:  # fmt: skip
    """All tiles of rows of a job times one block of columns."""
    for t in T.serial((p.tiles + p.cut.row_tiles - 1) // p.cut.row_tiles):
        tile: T.let = t * p.cut.row_tiles
        second: T.let = T.min(tile + 1, p.tiles - 1)
        clear_sums()
        for kh, kw in T.grid(p.c.product.kernel[0], p.c.product.kernel[1]):
            if p.reads(tile, kh, kw):
                _multiply_tap(p, image, columns, begin, tile, second, kh, kw)
        store_sums(sums, 0, p.panels)
        for r in T.serial(p.cut.rows):
            _finish_row(p, result, sums, constants, sample, first, tile, 0, r, block)
            if p.cut.row_tiles == 2:
                _finish_row(p, result, sums, constants, sample, first, second, 1, r, block)


@script.macro
def _run_job(p: _Product, operand: Any, weight: Any, columns: Any, constants: Any, result: Any, job: Any) -> None:
    """Run one job: expand its image, and multiply it with all its blocks of columns."""
    image = T.alloc_buffer((p.size,), "int32")
    sums = T.alloc_buffer((TILES * TILE,), "int32")
    sample: T.let = p.sample(job)
    first: T.let = p.first(job)
    configure_tiles(p.cut.rows)
    expand_image(p, operand, image, sample, first)
    for b in T.serial(p.cut.blocks):
        block: T.let = p.block(job, b)
        if p.own_weights:
            for tap in T.serial(p.taps):
                _expand_weight(p, weight, columns, 0, block, tap)
            _multiply_block(p, image, columns, 0, sums, constants, result, sample, first, block)
        else:
            _multiply_block(p, image, columns, block * p.block_lanes, sums, constants, result, sample, first, block)
    T.evaluate(release_tiles())


@script.macro
def _run(p: _Product, operand: Any, weight: Any, constants: Any, result: Any) -> None:
    """Run all jobs, each with weights that it expands, or all with those that are expanded before."""
    if p.own_weights:
        T.evaluate(request_tiles())
        for job in T.parallel(p.jobs):
            own = T.alloc_buffer((p.block_lanes,), "int32")
            _run_job(p, operand, weight, own, constants, result, job)
    else:
        shared = T.alloc_buffer((p.all_blocks * p.block_lanes,), "int32")
        T.evaluate(request_tiles())
        for part in T.parallel(p.all_blocks * p.taps):
            _expand_weight(p, weight, shared, part // p.taps * p.block_lanes, part // p.taps, part % p.taps)
        for job in T.parallel(p.jobs):
            _run_job(p, operand, weight, shared, constants, result, job)


class TileForm(ABC, Generic[Product]):
    """The form of a convolution in either direction."""

    name: ClassVar[str] = TILE_REGISTERS
    takes_matrices: ClassVar[bool]
    """Whether products of matrices pay: of codes of several bits they do, of single bits popcounts are as fast."""

    @abstractmethod
    def expanded(self, product: Product) -> ByteConvolution:
        """The product as a convolution of bytes."""

    def accepts(self, product: Product, features: CpuFeatures) -> bool:
        """Whether the processor has tile registers and the product fills enough of their rows."""
        return features.has_amx and self._cut(product) is not None

    def tiles(self, product: Product, features: CpuFeatures) -> tuple[Tile, ...]:
        """The only choice: tiles are as large as registers."""
        return NO_CHOICE

    def kernel(self, product: Product, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """The kernel of operand, packed weight and result."""
        cut = self._cut(product)
        assert cut is not None, "an accepted product can be cut"
        return matrix_kernel(cut) if isinstance(cut, MatrixProduct) else _kernel(cut)

    def _cut(self, product: Product) -> MatrixProduct | _Product | None:
        """The product of matrices or the convolution that ``product`` is, cut; None if tiles do not pay."""
        expanded = self.expanded(product)
        matrix = cut_matrix(expanded) if self.takes_matrices else None
        if matrix is not None:
            return matrix
        cut = cut_convolution(expanded)
        return None if cut is None else _Product(expanded, cut)


def _kernel(p: _Product) -> tirx.PrimFunc:
    """The TIR function of the convolution that ``p`` says how to cut."""
    c = p.c

    @script.prim_func(s_tir=True)
    def kernel(
        operand: T.Buffer(c.operand, "int32"),
        weight: T.Buffer(c.product.packed_weight, "int32"),
        result: T.Buffer((c.product.samples, c.output_hw[0], c.output_hw[1], c.product.columns), c.dtype),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        if c.of_codes:
            constants = T.alloc_buffer(c.constants_shape, "int32")
            for panel in T.parallel(c.product.panels):
                sum_signs(c.borders, weight, constants, panel)
            _run(p, operand, weight, constants, result)
        else:
            _run(p, operand, weight, None, result)

    return kernel
