"""Weight-gradient product by bytes: levels of a few panels become bytes for a run of positions, for all kept channels.

Activations of B bits times codes of b bits are B * b products of bits, or B products of bits with tables. As bytes they
are one, of four products a lane, and packed words stay what is kept in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.byte_product.multiplier import (
    STEPS,
    ByteMultiplier,
    byte_multiplier,
    expanded_codes,
    in_order,
    operands_fit,
)
from fqt_deploy.targets.cpu.products.form import BYTE_PRODUCT, NO_CHOICE
from fqt_deploy.targets.cpu.register_tile import largest_divisor
from fqt_deploy.targets.products import BitWeightGradient
from fqt_deploy.targets.tuning_log import Tile

COLUMN_BYTES = 1 << 18
"""Upper bound of the bytes that the levels of a run of positions take: they are read from the second-level cache."""
JOBS = 8
"""Number of independent pieces to cut a product into, where it is large enough: work for that many threads."""
MINIMUM_PLANES = 4
"""Least planes of activations: tables multiply three about as fast, and fewer faster."""
MINIMUM_PLANE_PRODUCTS = 6
"""Least products of a plane with a plane: fewer are counted faster."""


class ByteWeightGradient:
    """The form by bytes: codes of the gradient once, levels for each block of panels, sums in registers."""

    name: ClassVar[str] = BYTE_PRODUCT

    def accepts(self, product: BitWeightGradient, features: CpuFeatures) -> bool:
        """Whether panels are whole, channels fill tiles, products fit the sums of bytes, and bits are many."""
        multiplier = byte_multiplier(features)
        if multiplier is None:
            return False
        bits = ByteCut(product, multiplier).bits, product.planes
        if not operands_fit(*bits) or multiplier.steps(*bits, most=1) == 0:
            return False
        whole = product.has_whole_panels and product.kept % multiplier.rows == 0
        return whole and product.planes >= MINIMUM_PLANES and product.bits * product.planes >= MINIMUM_PLANE_PRODUCTS

    def tiles(self, product: BitWeightGradient, features: CpuFeatures) -> tuple[Tile, ...]:
        """The only choice: as many channels as the instruction's tile has."""
        return NO_CHOICE

    def kernel(self, product: BitWeightGradient, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """The kernel: codes as bytes, their sums inside of each tap, then blocks of panels."""
        multiplier = byte_multiplier(features)
        assert multiplier is not None
        return kernel_of(ByteCut(product, multiplier))


@dataclass(frozen=True)
class ByteCut:
    """A product and how it is cut: a job has a block of panels of one or more taps, and all kept channels.

    Attributes:
        product: what is computed.
        multiplier: the processor's products of bytes.
    """

    product: BitWeightGradient
    multiplier: ByteMultiplier

    @property
    def rows(self) -> int:
        """Number of kept channels in a tile, and in a group of codes that lie together."""
        return self.multiplier.rows

    @property
    def lanes(self) -> int:
        """Number of columns of a register."""
        return self.multiplier.lanes

    @property
    def digits(self) -> int:
        """Number of parts that a code is multiplied in: two where both operands have 8 bits, for one needs a sign."""
        return 1 if operands_fit(self.product.bits, self.product.planes) else 2

    @property
    def bits(self) -> int:
        """Width of a digit of a code."""
        return -(-self.product.bits // self.digits)

    @property
    def groups(self) -> int:
        """Number of tiles of kept channels, of each digit of their codes."""
        return self.product.kept // self.rows * self.digits

    @property
    def own(self) -> int:
        """Number of panels of one plane of a tap."""
        return self.product.tap_panels // self.product.planes

    @property
    def panel_vectors(self) -> int:
        """Number of registers that one panel takes."""
        return PANEL // self.lanes

    @property
    def width(self) -> int:
        """Number of registers of columns of a block: of one panel, or of more."""
        return largest_divisor(self.own * self.panel_vectors, self.multiplier.vectors)

    @property
    def blocks(self) -> int:
        """Number of blocks of columns."""
        return self.own * self.panel_vectors // self.width

    @property
    def taps(self) -> int:
        """Number of taps of a job: as many as leave enough jobs."""
        taps = self.product.taps
        return max((t for t in range(1, taps + 1) if taps % t == 0 and taps // t * self.blocks >= JOBS), default=1)

    @property
    def jobs(self) -> int:
        """Number of jobs."""
        return self.product.taps // self.taps * self.blocks

    @property
    def steps(self) -> int:
        """Number of lanes that the codes of one channel take."""
        return self.product.words * STEPS

    @property
    def limit(self) -> int:
        """Number of lanes whose products are added before sums are widened."""
        return self.multiplier.steps(self.bits, self.product.planes, most=self.steps)

    @property
    def runs(self) -> int:
        """Number of runs of positions."""
        most = max(1, COLUMN_BYTES // (self.taps * self.width * STEPS * 4 * self.lanes))
        return -(-self.product.words // most)

    @property
    def run(self) -> int:
        """Number of words of a run; the last one may have fewer."""
        return -(-self.product.words // self.runs)

    @property
    def slots(self) -> int:
        """Number of tiles of kept channels whose sums are kept from run to run."""
        return self.groups if self.runs > 1 else 1

    @property
    def lane(self) -> Any:
        """Index vector of the columns of a register."""
        return T.ramp(0, 1, self.lanes)

    def tap(self, job: Any, t: Any) -> Any:
        """The number of a tap of a job."""
        return job // self.blocks * self.taps + t

    def vector(self, job: Any, v: Any) -> Any:
        """The number of a register of columns of a job among those of a plane of a tap."""
        return job % self.blocks * self.width + v

    def words_of(self, positions: Any, panel: Any, vector: Any, word: Any) -> Any:
        """A word of the columns of a register, which is one of those of the panels from ``panel`` on."""
        part = vector % self.panel_vectors * self.lanes
        return positions[panel + vector // self.panel_vectors, word, T.ramp(part, 1, self.lanes)]

    def levels(self, positions: Any, tap: Any, vector: Any, word: Any) -> list[Any]:
        """A word of the columns of a register of every plane of the input."""
        first = tap * self.product.tap_panels
        return [self.words_of(positions, first + p * self.own, vector, word) for p in range(self.product.planes)]

    def codes(self, planes: Any, word: Any, group: Any) -> list[Any]:
        """A word of a tile's kept channels of every plane of a digit of the gradient."""
        first, channels = group % self.digits * self.bits, T.ramp(group // self.digits * self.rows, 1, self.rows)
        return [planes[word, first + p, channels] for p in range(self.bits)]

    def written(self, before: Any, value: Any, group: Any) -> Any:
        """The result from the sums of levels of a tile, and of what the digit below has written ``before``."""
        if self.digits == 1:
            return value
        return tirx.if_then_else((group % self.digits).equal(0), value, before + (value << self.bits))

    def add(self, total: Any, level: Any, code: Any) -> Any:
        """The sum of ``total`` and the products of four levels a lane with four codes."""
        return self.multiplier.add(total, *in_order(self.bits, tirx.Broadcast(code, self.lanes), level))


@script.macro
def _multiply(
    c: ByteCut, codes: Any, columns: Any, sums: Any, group: Any, slot: Any, begin: Any, words: Any, t: Any, width: Any
) -> None:
    """Add the products of a tile of channels with ``width`` registers of levels over ``words`` words to its sums."""
    if begin == 0:
        for r, v in T.grid(c.rows, width):
            sums[slot, t, r, v, c.lane] = T.broadcast(0, c.lanes)
    for part in T.serial(T.ceildiv(words * STEPS, c.limit)):
        total = T.alloc_buffer((c.rows, width, c.multiplier.sum_count), c.multiplier.dtype)
        for r in T.unroll(c.rows):
            for v in T.unroll(width):
                total[r, v, c.multiplier.sums] = c.multiplier.zeros()
        for step in T.serial(T.min(c.limit, words * STEPS - part * c.limit)):
            for r in T.unroll(c.rows):
                for v in T.unroll(width):
                    total[r, v, c.multiplier.sums] = c.add(
                        total[r, v, c.multiplier.sums],
                        columns[t, part * c.limit + step, v, c.lane],
                        codes[group, begin * STEPS + part * c.limit + step, r],
                    )
        for r in T.unroll(c.rows):
            for v in T.unroll(width):
                sums[slot, t, r, v, c.lane] = sums[slot, t, r, v, c.lane] + c.multiplier.widened(
                    total[r, v, c.multiplier.sums]
                )


@script.macro
def _sum_inside(c: ByteCut, codes: Any, positions: Any, inside: Any, mask: Any) -> None:
    """The sums of each channel's codes inside of the taps of one panel of masks."""
    sums = T.alloc_buffer((1, 1, c.rows, c.panel_vectors, c.lanes), "int32")
    columns = T.alloc_buffer((1, c.steps, c.panel_vectors, c.lanes), "int32")
    for word, v in T.grid(c.product.words, c.panel_vectors):
        for step in T.unroll(STEPS):
            columns[0, word * STEPS + step, v, c.lane] = expanded_codes(
                [c.words_of(positions, c.product.channel_panels + mask, v, word)], step, c.lanes
            )
    for group in T.serial(c.groups):
        _multiply(c, codes, columns, sums, group, 0, 0, c.product.words, 0, c.panel_vectors)
        for r, v in T.grid(c.rows, c.panel_vectors):
            inside[group * c.rows + r, T.ramp(mask * PANEL + v * c.lanes, 1, c.lanes)] = sums[0, 0, r, v, c.lane]


@script.macro
def _write(c: ByteCut, sums: Any, inside: Any, result: Any, job: Any, group: Any, slot: Any) -> None:
    """Write the results of a tile of channels."""
    for r, v, t in T.grid(c.rows, c.width, c.taps):
        for lane in T.vectorized(c.lanes):
            tap: T.let = c.tap(job, t)
            channel: T.let = c.vector(job, v) * c.lanes + lane
            row: T.let = group // c.digits * c.rows + r
            result[row, channel, c.product.tap(tap)[0], c.product.tap(tap)[1]] = c.written(
                result[row, channel, c.product.tap(tap)[0], c.product.tap(tap)[1]],
                c.product.level(sums[slot, t, r, v, lane], inside[group * c.rows + r, tap]),
                group,
            )


@script.macro
def _run_job(c: ByteCut, codes: Any, positions: Any, inside: Any, result: Any, job: Any) -> None:
    """All channels of one block of panels: run after run of positions."""
    columns = T.alloc_buffer((c.taps, c.run * STEPS, c.width, c.lanes), "int32")
    sums = T.alloc_buffer((c.slots, c.taps, c.rows, c.width, c.lanes), "int32")
    for run in T.serial(c.runs):
        words: T.let = T.min(c.run, c.product.words - run * c.run)
        for t, word, v in T.grid(c.taps, words, c.width):
            for step in T.unroll(STEPS):
                columns[t, word * STEPS + step, v, c.lane] = expanded_codes(
                    c.levels(positions, c.tap(job, t), c.vector(job, v), run * c.run + word), step, c.lanes
                )
        for group in T.serial(c.groups):
            for t in T.serial(c.taps):
                _multiply(c, codes, columns, sums, group, group % c.slots, run * c.run, words, t, c.width)
            if run == c.runs - 1:
                _write(c, sums, inside, result, job, group, group % c.slots)


def kernel_of(c: ByteCut) -> tirx.PrimFunc:
    """The TIR function of the gradient that is cut as ``c`` says."""
    p = c.product

    @script.prim_func(s_tir=True)
    def product(
        planes: T.Buffer((p.words, p.bits, p.kept), "int32"),
        positions: T.Buffer((p.panels, p.words, PANEL), "int32"),
        result: T.Buffer((p.kept, p.results, p.kernel[0], p.kernel[1]), "int32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        codes = T.alloc_buffer((c.groups, c.steps, c.rows), "int32")
        inside = T.alloc_buffer((c.groups * c.rows, p.mask_panels * PANEL), "int32")
        for group in T.parallel(c.groups):
            for word in T.serial(p.words):
                for step in T.unroll(STEPS):
                    codes[group, word * STEPS + step, T.ramp(0, 1, c.rows)] = expanded_codes(
                        c.codes(planes, word, group), step, c.rows
                    )
        if p.signed:
            for mask in T.parallel(p.mask_panels):
                _sum_inside(c, codes, positions, inside, mask)
        for job in T.parallel(c.jobs):
            _run_job(c, codes, positions, inside, result, job)

    return product
