"""Attention: the scores of a block of queries with all keys stay in the second-level cache.

A job is a head, or a part of its blocks. It copies keys and values once. The scores of a block, all of a row, are
turned into weights where they lie, and multiplied with the values: none is computed twice, none is written to memory.
"""

from __future__ import annotations

import operator
from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.fp32.attention_cut import (
    AttentionCut,
    attention_cut,
    copy_across,
    copy_rows,
    fold,
    weight,
    without_absent,
    write_row,
)
from fqt_deploy.targets.cpu.fp32.matrix_tile import LANES, add_products, ceil_div, clear, tile_shape


class Fp32AttentionRule:
    """Takes every ``attention``."""

    ops: ClassVar[frozenset[str]] = frozenset({"attention"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """Returns the kernel in register tiles."""
        return without_absent(_kernel(attention_cut(function, 0, tile_shape(features))), function, 0)


@script.macro
def scores_tile(c: AttentionCut, scores: Any, panels: Any, rows: Any, terms: int, vectors: int, p: Any, i: Any) -> None:
    """The products of one tile of rows with one panel."""
    total = T.alloc_buffer((c.tile.rows, vectors, LANES), "float32")
    clear(total, c.tile.rows, vectors)
    add_products(
        total,
        c.tile.rows,
        vectors,
        terms,
        lambda r, t: rows[i * c.tile.rows + r, t],
        lambda t, v: panels[p, t, T.ramp(v * LANES, 1, LANES)],
    )
    for r in T.unroll(c.tile.rows):
        for v in T.unroll(vectors):
            scores[i * c.tile.rows + r, T.ramp(p * c.tile.width + v * LANES, 1, LANES)] = total[
                r, v, T.ramp(0, 1, LANES)
            ]


@script.macro
def _softmax(
    c: AttentionCut, scores: Any, inverse: Any, logsumexp: Any, mask: Any, draws: Any, b: Any, head: Any, block: Any
) -> None:
    """Turn the scores of a block into weights; the inverse of their sum is left to who reads them.

    What hides keys is computed twice: writing the scores in between takes longer, and LLVM would write those alone that
    are hidden, which AMD's processors do one after another.
    """
    lanes = T.alloc_buffer((LANES,), "float32")
    top = T.alloc_buffer((1,), "float32")
    for r in T.serial(T.min(c.block, c.queries - block * c.block)):
        row: T.let = block * c.block + r
        vectors: T.let = (c.seen(block) + LANES - 1) // LANES
        for lane in T.vectorized(LANES):
            lanes[lane] = T.float32("-inf")
        for v in T.serial(vectors):
            for lane in T.vectorized(LANES):
                score: T.let = c.score(scores[r, v * LANES + lane], mask, b, head, row, v * LANES, lane)
                lanes[lane] = T.Select(score > lanes[lane], score, lanes[lane])
        fold(lanes, T.max)
        top[0] = T.Select(lanes[0] > T.float32("-inf"), lanes[0], T.float32(0))
        for lane in T.vectorized(LANES):
            lanes[lane] = T.float32(0)
        for v in T.serial(vectors):
            for lane in T.vectorized(LANES):
                scores[r, v * LANES + lane] = weight(
                    c.score(scores[r, v * LANES + lane], mask, b, head, row, v * LANES, lane) - top[0]
                )
            for lane in T.vectorized(LANES):
                lanes[lane] = lanes[lane] + scores[r, v * LANES + lane]
            if c.dropout > 0:
                for lane in T.vectorized(LANES):
                    scores[r, v * LANES + lane] = c.kept(
                        scores[r, v * LANES + lane], draws, b, head, row, v * LANES + lane
                    )
        fold(lanes, operator.add)
        if lanes[0] == T.float32(0):
            inverse[r] = T.float32(0)
            logsumexp[b, head, row] = T.float32(0)
        else:
            inverse[r] = c.share_kept / lanes[0]
            logsumexp[b, head, row] = top[0] + T.log(lanes[0])


@script.macro
def _sum_tile(
    c: AttentionCut, target: Any, elements: int, weights: Any, rows: Any, scale: Any, vectors: int, first: int, b: Any,
    head: Any, block: Any, i: Any,
) -> None:  # fmt: skip
    """The sums of ``weighted_sums`` for one tile of queries, ``vectors`` vectors from ``first`` on."""
    total = T.alloc_buffer((c.tile.rows, vectors, LANES), "float32")
    clear(total, c.tile.rows, vectors)
    add_products(
        total,
        c.tile.rows,
        vectors,
        c.seen(block),
        lambda r, t: weights[i * c.tile.rows + r, t],
        lambda t, v: rows[t, T.ramp((first + v) * LANES, 1, LANES)],
    )
    for r in T.unroll(c.tile.rows):
        if block * c.block + i * c.tile.rows + r < c.queries:
            for v in T.unroll(vectors):
                write_row(
                    target,
                    elements,
                    first + v,
                    b,
                    block * c.block + i * c.tile.rows + r,
                    head,
                    lambda lane: total[r, v, lane] * scale(i * c.tile.rows + r),  # noqa: B023 - expanded here
                )


@script.macro
def weighted_sums(
    c: AttentionCut, target: Any, elements: int, count: int, weights: Any, rows: Any, scale: Any, b: Any, head: Any,
    block: Any,
) -> None:  # fmt: skip
    """Write ``scale(query)`` times the sum over keys of ``weights`` times ``rows`` for a block of queries.

    Rows of ``target`` have so many ``elements``, in ``count`` vectors.
    """
    for i in T.serial(c.tiles(block)):
        for whole in T.unroll(count // c.tile.vectors):
            _sum_tile(
                c, target, elements, weights, rows, scale, c.tile.vectors, whole * c.tile.vectors, b, head, block, i
            )
        if count % c.tile.vectors != 0:
            _sum_tile(
                c, target, elements, weights, rows, scale, count % c.tile.vectors,
                count // c.tile.vectors * c.tile.vectors, b, head, block, i,
            )  # fmt: skip


@script.macro
def all_scores(c: AttentionCut, scores: Any, panels: Any, rows: Any, terms: int, block: Any) -> None:
    """The products of a block of rows with all panels that some of its queries see."""
    for p, i in T.grid(T.min(c.panels, (c.seen(block) + c.tile.width - 1) // c.tile.width), c.tiles(block)):
        if c.tile.edge(c.columns) == 0:  # noqa: SIM114 - known when the macro is expanded
            scores_tile(c, scores, panels, rows, terms, c.tile.vectors, p, i)
        elif p < c.panels - 1:
            scores_tile(c, scores, panels, rows, terms, c.tile.vectors, p, i)
        else:
            scores_tile(c, scores, panels, rows, terms, c.tile.edge(c.columns), p, i)


@script.macro
def _job(
    c: AttentionCut, q: Any, k: Any, v: Any, mask: Any, draws: Any, output: Any, logsumexp: Any, b: Any, head: Any,
    part: Any,
) -> None:  # fmt: skip
    """One part of the queries of a head."""
    keys = T.alloc_buffer((c.panels, c.depth, c.tile.width), "float32")
    values = T.alloc_buffer((c.keys, c.width_vectors * LANES), "float32")
    queries = T.alloc_buffer((c.block, c.depth_vectors * LANES), "float32")
    scores = T.alloc_buffer((c.block, c.panels * c.tile.width), "float32")
    inverse = T.alloc_buffer((c.block,), "float32")
    copy_across(c, keys, k, c.depth, b, head // c.share)
    copy_rows(values, v, c.keys, c.keys - 1, c.width, b, 0, head // c.share, T.float32(1))
    for step in T.serial(ceil_div(c.blocks, c.parts)):
        block: T.let = step * c.parts + part
        if block < c.blocks:
            copy_rows(queries, q, c.block, c.queries - 1, c.depth, b, block * c.block, head, T.float32(c.scale))
            all_scores(c, scores, keys, queries, c.depth, block)
            _softmax(c, scores, inverse, logsumexp, mask, draws, b, head, block)
            weighted_sums(c, output, c.width, c.width_vectors, scores, values, lambda r: inverse[r], b, head, block)


def _kernel(c: AttentionCut) -> tirx.PrimFunc:
    """The TIR function; what is absent has a parameter, too."""
    extents = c.extents_of_mask

    @script.prim_func(s_tir=True)
    def attention(
        q: T.Buffer((c.batch, c.queries, c.heads, c.depth), "float32"),
        k: T.Buffer((c.batch, c.keys, c.groups, c.depth), "float32"),
        v: T.Buffer((c.batch, c.keys, c.groups, c.width), "float32"),
        mask: T.Buffer(extents, "float32"),
        draws: T.Buffer((c.batch, 2), "float32"),
        output: T.Buffer((c.batch, c.queries, c.heads, c.width), "float32"),
        logsumexp: T.Buffer((c.batch, c.heads, c.queries), "float32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        for job in T.parallel(c.batch * c.heads * c.parts):
            _job(
                c, q, k, v, mask, draws, output, logsumexp, job // (c.heads * c.parts), job // c.parts % c.heads,
                job % c.parts,
            )  # fmt: skip

    return attention
