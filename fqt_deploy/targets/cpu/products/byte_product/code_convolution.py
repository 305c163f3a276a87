"""Convolution of codes with levels of weights by bytes: one product instead of one for each plane of a weight.

A job makes bytes of its image, in the second-level cache; then, for a few registers of columns at a time, of a chunk of
the weight, in the first-level cache, which all its positions are multiplied with. In memory both stay packed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.products.byte_product.code_convolution_cut import CodeConvolutionCut
from fqt_deploy.targets.cpu.products.byte_product.multiplier import STEPS, codes_of_a_row, expanded_levels

Words = Callable[[Any, Any], list[Any]]
"""The planes of a word, by a place of the operand and a word's number."""
Level = Callable[[Any, Any, Any], Any]
"""The result from sums of codes times levels, by a place of the result and a vector of columns."""


@script.macro
def _expand_image(c: CodeConvolutionCut, words: Words, image: Any, job: Any) -> None:
    """Make bytes of the codes that a job reads; what does not exist is zero."""
    for g, h, v in T.grid(c.group, c.stored[0], c.stored[1]):
        if c.is_inside(c.source(job, g, h, v)):
            for w in T.serial(c.product.words):
                image[T.ramp(c.lane(g, h, v) + w * STEPS, 1, STEPS)] = codes_of_a_row(words(c.source(job, g, h, v), w))
        else:
            for w in T.serial(c.product.words):
                image[T.ramp(c.lane(g, h, v) + w * STEPS, 1, STEPS)] = T.broadcast(0, STEPS)


@script.macro
def _expand_weight(
    c: CodeConvolutionCut, weight: Any, levels: Any, block: Any, tap: Any, word: Any, words: Any
) -> None:
    """Make bytes of the levels of a chunk of the weight for a block of columns."""
    for t, w in T.grid(c.chunk[0], words):
        for v in T.unroll(c.vectors):
            for step in T.unroll(STEPS):
                levels[t, w * STEPS + step, v, T.ramp(0, 1, c.lanes)] = expanded_levels(
                    c.weight_words(weight, block * c.vectors + v, c.weight_row(tap + t, word + w)), step, c.lanes
                )


@script.macro
def _multiply_part(
    c: CodeConvolutionCut, image: Any, begins: Any, levels: Any, sums: Any,
    phase: Any, first: Any, slot: Any, tap: Any, word: Any, t: Any, w: Any, words: Any, step: Any,
) -> None:  # fmt: skip
    """Add the products of a tile with a part of a chunk: from tap ``t`` and word ``w`` of it on."""
    total = T.alloc_buffer((c.rows, c.vectors, c.multiplier.sum_count), c.multiplier.dtype)
    for r in T.unroll(c.rows):
        for v in T.unroll(c.vectors):
            total[r, v, c.multiplier.sums] = c.multiplier.zeros()
    for i in T.serial(c.part[0]):
        if c.reads(phase, tap + t + i):
            at: T.let = c.shift(phase, tap + t + i) + word * STEPS + step
            for j in T.serial(words):
                for s in T.unroll(c.part[2]):
                    for r in T.unroll(c.rows):
                        for v in T.unroll(c.vectors):
                            total[r, v, c.multiplier.sums] = c.multiplier.add(
                                total[r, v, c.multiplier.sums],
                                T.broadcast(image[begins[first + r] + at + (w + j) * STEPS + s], c.lanes),
                                levels[t + i, (w + j) * STEPS + step + s, v, T.ramp(0, 1, c.lanes)],
                            )
    for r in T.unroll(c.rows):
        for v in T.unroll(c.vectors):
            before: T.let = tirx.if_then_else(
                tirx.all(tap + t == 0, word + w == 0, step == 0),
                T.broadcast(0, c.lanes),
                sums[slot + r, v, T.ramp(0, 1, c.lanes)],
            )
            sums[slot + r, v, T.ramp(0, 1, c.lanes)] = before + c.multiplier.widened(total[r, v, c.multiplier.sums])


@script.macro
def _write(
    c: CodeConvolutionCut, level: Level, sums: Any, result: Any, job: Any, block: Any, phase: Any, tile: Any
) -> None:
    """Write the results of a tile."""
    for r in T.serial(c.rows):
        position: T.let = T.min(tile * c.rows + r, c.positions(job) - 1)
        n: T.let = c.result_position(job, phase, position)[0]
        y: T.let = c.result_position(job, phase, position)[1]
        x: T.let = c.result_position(job, phase, position)[2]
        if c.has_position((n, y, x)):
            for v in T.unroll(c.vectors):
                column: T.let = (block * c.vectors + v) * c.lanes
                result[n, y, x, T.ramp(column, 1, c.lanes)] = T.cast(
                    level(
                        sums[c.slot(phase, tile) + r, v, T.ramp(0, 1, c.lanes)], (n, y, x), T.ramp(column, 1, c.lanes)
                    ),
                    f"{result.dtype}x{c.lanes}",
                )


@script.macro
def _multiply_chunk(
    c: CodeConvolutionCut, image: Any, begins: Any, levels: Any, sums: Any,
    phase: Any, tile: Any, tap: Any, word: Any, words: Any,
) -> None:  # fmt: skip
    """Add the products of a tile with a chunk of the weight, part by part."""
    for t, w, step in T.grid(c.chunk[0] // c.part[0], T.ceildiv(words, c.part[1]), STEPS // c.part[2]):
        _multiply_part(
            c, image, begins, levels, sums, phase, tile * c.rows, c.slot(phase, tile), tap, word,
            t * c.part[0], w * c.part[1], T.min(c.part[1], words - w * c.part[1]), step * c.part[2],
        )  # fmt: skip


@script.macro
def convolve(c: CodeConvolutionCut, words: Words, level: Level, weight: Any, result: Any) -> None:
    """The whole convolution: independent jobs, of some positions and some columns each."""
    for job in T.parallel(c.jobs):
        image = T.alloc_buffer((c.image_lanes,), "int32")
        begins = T.alloc_buffer((c.most_tiles * c.rows,), "int32")
        levels = T.alloc_buffer((c.chunk[0], c.chunk[1] * STEPS, c.vectors, c.lanes), "int32")
        sums = T.alloc_buffer((c.slots, c.vectors, c.lanes), "int32")
        tiles: T.let = T.ceildiv(c.positions(job), c.rows)
        _expand_image(c, words, image, job)
        for position in T.serial(tiles * c.rows):
            # the last tile computes its last position several times
            begins[position] = c.begin(T.min(position, c.positions(job) - 1))
        for b, taps, run in T.grid(c.job_blocks, c.product.taps // c.chunk[0], c.runs):
            tap: T.let = taps * c.chunk[0]
            word: T.let = run * c.chunk[1]
            count: T.let = T.min(c.chunk[1], c.product.words - word)
            _expand_weight(c, weight, levels, c.block(job, b), tap, word, count)
            for phase, tile in T.grid(c.phases, tiles):
                _multiply_chunk(c, image, begins, levels, sums, phase, tile, tap, word, count)
                if tirx.all(tap + c.chunk[0] == c.product.taps, run + 1 == c.runs):
                    # tile by tile: stores wait for memory while the next tile is multiplied
                    _write(c, level, sums, result, job, c.block(job, b), phase, tile)
