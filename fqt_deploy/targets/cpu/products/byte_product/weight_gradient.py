"""Weight-gradient product by bytes: levels of a few panels become bytes for a run of positions, for all kept channels.

Activations of B bits times codes of b bits are B * b products of bits, or B products of bits with tables. As bytes they
are one, of 64 products an instruction, and packed words stay what is kept in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.byte_product.expansion import (
    STEPS,
    add_byte_products,
    expanded_codes,
    has_byte_products,
)
from fqt_deploy.targets.cpu.products.form import BYTE_PRODUCT, NO_CHOICE
from fqt_deploy.targets.cpu.register_tile import largest_divisor
from fqt_deploy.targets.products import BitWeightGradient
from fqt_deploy.targets.tuning_log import Tile

ROWS = 8
"""Number of kept channels in a tile, and in a group of codes that lie together."""
PANELS = 2
"""Upper bound of the panels in a tile."""
COLUMN_BYTES = 1 << 18
"""Upper bound of the bytes that the levels of a run of positions take: they are read from the second-level cache."""
JOBS = 8
"""Number of independent pieces to cut a product into, where it is large enough: work for that many threads."""
SIGNED_BITS = 7
"""Largest width of the codes that are taken for signed bytes."""
MAXIMUM_BITS = 8
MINIMUM_PLANES = 4
"""Least planes of activations: tables multiply three about as fast, and fewer faster."""
MINIMUM_PLANE_PRODUCTS = 6
"""Least products of a plane with a plane: fewer are counted faster."""


class ByteWeightGradient:
    """The form by bytes: codes of the gradient once, levels for each block of panels, sums in registers."""

    name: ClassVar[str] = BYTE_PRODUCT

    def accepts(self, product: BitWeightGradient, features: CpuFeatures) -> bool:
        """Whether panels are whole, channels fill tiles, one of the codes fits a signed byte, and bits are many."""
        bits = product.bits, product.planes
        fits = max(bits) <= MAXIMUM_BITS and min(bits) <= SIGNED_BITS
        whole = product.has_whole_panels and product.kept % ROWS == 0
        pays = product.planes >= MINIMUM_PLANES and product.bits * product.planes >= MINIMUM_PLANE_PRODUCTS
        return has_byte_products(features) and fits and whole and pays

    def tiles(self, product: BitWeightGradient, features: CpuFeatures) -> tuple[Tile, ...]:
        """The only choice: eight channels and two panels are the sixteen accumulators that there are."""
        return NO_CHOICE

    def kernel(self, product: BitWeightGradient, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """The kernel: codes as bytes, their sums inside of each tap, then blocks of panels."""
        return _kernel(_Cut(product))


@dataclass(frozen=True)
class _Cut:
    """A product and how it is cut: a job has a block of panels of one or more taps, and all kept channels."""

    product: BitWeightGradient

    @property
    def groups(self) -> int:
        """Number of tiles of kept channels."""
        return self.product.kept // ROWS

    @property
    def own(self) -> int:
        """Number of panels of one plane of a tap."""
        return self.product.tap_panels // self.product.planes

    @property
    def width(self) -> int:
        """Number of panels of a block."""
        return largest_divisor(self.own, PANELS)

    @property
    def blocks(self) -> int:
        """Number of blocks of panels."""
        return self.own // self.width

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
    def runs(self) -> int:
        """Number of runs of positions."""
        most = max(1, COLUMN_BYTES // (self.taps * self.width * STEPS * 4 * PANEL))
        return -(-self.product.words // most)

    @property
    def run(self) -> int:
        """Number of words of a run; the last one may have fewer."""
        return -(-self.product.words // self.runs)

    @property
    def slots(self) -> int:
        """Number of tiles of kept channels whose sums are kept from run to run."""
        return self.groups if self.runs > 1 else 1

    def tap(self, job: Any, t: Any) -> Any:
        """The number of a tap of a job."""
        return job // self.blocks * self.taps + t

    def panel(self, job: Any, p: Any) -> Any:
        """The number of a panel of a job among those of a plane of a tap."""
        return job % self.blocks * self.width + p

    def levels(self, positions: Any, tap: Any, panel: Any, word: Any) -> list[Any]:
        """A word of sixteen rows of every plane of the input."""
        first = tap * self.product.tap_panels + panel
        return [positions[first + p * self.own, word, T.ramp(0, 1, PANEL)] for p in range(self.product.planes)]

    def codes(self, planes: Any, word: Any, group: Any) -> list[Any]:
        """A word of eight kept channels of every plane of the gradient."""
        return [planes[word, p, T.ramp(group * ROWS, 1, ROWS)] for p in range(self.product.bits)]

    def add(self, total: Any, level: Any, code: Any) -> Any:
        """The sum of ``total`` and the products of four levels a lane with four codes."""
        codes = tirx.Broadcast(code, PANEL)
        pair = (level, codes) if self.product.bits <= SIGNED_BITS else (codes, level)
        return add_byte_products(total, *pair)


@script.macro
def _multiply(
    c: _Cut, codes: Any, columns: Any, sums: Any, group: Any, slot: Any, begin: Any, words: Any, t: Any, width: Any
) -> None:
    """Add the products of a tile of channels with ``width`` panels of levels over ``words`` words to its sums."""
    total = T.alloc_buffer((ROWS, width, PANEL), "int32")
    for r in T.unroll(ROWS):
        for p in T.unroll(width):
            total[r, p, T.ramp(0, 1, PANEL)] = tirx.if_then_else(
                begin > 0, sums[slot, t, p, r, T.ramp(0, 1, PANEL)], T.broadcast(0, PANEL)
            )
    for step in T.serial(words * STEPS):
        for r in T.unroll(ROWS):
            for p in T.unroll(width):
                total[r, p, T.ramp(0, 1, PANEL)] = c.add(
                    total[r, p, T.ramp(0, 1, PANEL)],
                    columns[t, step, p, T.ramp(0, 1, PANEL)],
                    codes[group, begin * STEPS + step, r],
                )
    for r in T.unroll(ROWS):
        for p in T.unroll(width):
            sums[slot, t, p, r, T.ramp(0, 1, PANEL)] = total[r, p, T.ramp(0, 1, PANEL)]


@script.macro
def _sum_inside(c: _Cut, codes: Any, positions: Any, inside: Any, mask: Any) -> None:
    """The sums of each channel's codes inside of the taps of one panel of masks."""
    sums = T.alloc_buffer((1, 1, 1, ROWS, PANEL), "int32")
    columns = T.alloc_buffer((1, c.steps, 1, PANEL), "int32")
    for word in T.serial(c.product.words):
        for step in T.unroll(STEPS):
            columns[0, word * STEPS + step, 0, T.ramp(0, 1, PANEL)] = expanded_codes(
                [positions[c.product.channel_panels + mask, word, T.ramp(0, 1, PANEL)]], step, PANEL
            )
    for group in T.serial(c.groups):
        _multiply(c, codes, columns, sums, group, 0, 0, c.product.words, 0, 1)
        for r in T.unroll(ROWS):
            inside[group * ROWS + r, T.ramp(mask * PANEL, 1, PANEL)] = sums[0, 0, 0, r, T.ramp(0, 1, PANEL)]


@script.macro
def _write(c: _Cut, sums: Any, inside: Any, result: Any, job: Any, group: Any, slot: Any) -> None:
    """Write the results of a tile of channels."""
    for r, p, t in T.grid(ROWS, c.width, c.taps):
        for lane in T.vectorized(PANEL):
            tap: T.let = c.tap(job, t)
            result[group * ROWS + r, c.panel(job, p) * PANEL + lane, c.product.tap(tap)[0], c.product.tap(tap)[1]] = (
                c.product.level(sums[slot, t, p, r, lane], inside[group * ROWS + r, tap])
            )


@script.macro
def _run_job(c: _Cut, codes: Any, positions: Any, inside: Any, result: Any, job: Any) -> None:
    """All channels of one block of panels: run after run of positions."""
    columns = T.alloc_buffer((c.taps, c.run * STEPS, c.width, PANEL), "int32")
    sums = T.alloc_buffer((c.slots, c.taps, c.width, ROWS, PANEL), "int32")
    for run in T.serial(c.runs):
        words: T.let = T.min(c.run, c.product.words - run * c.run)
        for t, word, p in T.grid(c.taps, words, c.width):
            for step in T.unroll(STEPS):
                columns[t, word * STEPS + step, p, T.ramp(0, 1, PANEL)] = expanded_codes(
                    c.levels(positions, c.tap(job, t), c.panel(job, p), run * c.run + word), step, PANEL
                )
        for group in T.serial(c.groups):
            for t in T.serial(c.taps):
                _multiply(c, codes, columns, sums, group, group % c.slots, run * c.run, words, t, c.width)
            if run == c.runs - 1:
                _write(c, sums, inside, result, job, group, group % c.slots)


def _kernel(c: _Cut) -> tirx.PrimFunc:
    """The TIR function of the gradient that is cut as ``c`` says."""
    p = c.product

    @script.prim_func(s_tir=True)
    def product(
        planes: T.Buffer((p.words, p.bits, p.kept), "int32"),
        positions: T.Buffer((p.panels, p.words, PANEL), "int32"),
        result: T.Buffer((p.kept, p.results, p.kernel[0], p.kernel[1]), "int32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        codes = T.alloc_buffer((c.groups, c.steps, ROWS), "int32")
        inside = T.alloc_buffer((p.kept, p.mask_panels * PANEL), "int32")
        for group in T.parallel(c.groups):
            for word in T.serial(p.words):
                for step in T.unroll(STEPS):
                    codes[group, word * STEPS + step, T.ramp(0, 1, ROWS)] = expanded_codes(
                        c.codes(planes, word, group), step, ROWS
                    )
        if p.signed:
            for mask in T.parallel(p.mask_panels):
                _sum_inside(c, codes, positions, inside, mask)
        for job in T.parallel(c.jobs):
            _run_job(c, codes, positions, inside, result, job)

    return product
