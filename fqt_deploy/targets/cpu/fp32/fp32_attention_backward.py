"""The gradients of attention: weights and their slope of a block of queries stay in the second-level cache.

A job is a head of keys. For each block of queries it computes the weights again from the saved logarithm of their sum,
and adds to the gradients of all keys and values, which it keeps to itself until the end.
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
from fqt_deploy.targets.cpu.fp32.fp32_attention import all_scores, weighted_sums
from fqt_deploy.targets.cpu.fp32.matrix_tile import LANES, add_products, tile_shape


class Fp32AttentionBackwardRule:
    """Takes every ``attention_backward``."""

    ops: ClassVar[frozenset[str]] = frozenset({"attention_backward"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """Returns the kernel in register tiles."""
        return without_absent(_kernel(attention_cut(function, 1, tile_shape(features))), function, 1)


@script.macro
def weights_again(c: AttentionCut, weights: Any, logsumexp: Any, mask: Any, b: Any, head: Any, block: Any) -> None:
    """Turn the scores of a block into weights; those of queries that there are not are zero."""
    for r in T.serial(c.tiles(block) * c.tile.rows):
        row: T.let = block * c.block + r
        if row < c.queries:
            for v in T.serial((c.seen(block) + LANES - 1) // LANES):
                for lane in T.vectorized(LANES):
                    weights[r, v * LANES + lane] = weight(
                        c.score(weights[r, v * LANES + lane], mask, b, head, row, v * LANES, lane)
                        - logsumexp[b, head, row]
                    )
        else:
            for v in T.serial((c.seen(block) + LANES - 1) // LANES):
                for lane in T.vectorized(LANES):
                    weights[r, v * LANES + lane] = T.float32(0)


@script.macro
def slopes_and_kept(c: AttentionCut, slopes: Any, weights: Any, draws: Any, b: Any, head: Any, block: Any) -> None:
    """Turn the products of gradients and values into the slope of the scores; what dropout drops loses its weight."""
    lanes = T.alloc_buffer((LANES,), "float32")
    total = T.alloc_buffer((LANES,), "float32")
    for r in T.serial(c.tiles(block) * c.tile.rows):
        row: T.let = T.min(block * c.block + r, c.queries - 1)
        vectors: T.let = (c.seen(block) + LANES - 1) // LANES
        for lane in T.vectorized(LANES):
            lanes[lane] = T.float32(0)
        for lane in T.vectorized(LANES):
            total[lane] = T.float32(0)
        for v in T.serial(vectors):
            if c.dropout > 0:
                for lane in T.vectorized(LANES):
                    slopes[r, v * LANES + lane] = c.share_kept * c.kept(
                        slopes[r, v * LANES + lane], draws, b, head, row, v * LANES + lane
                    )
            for lane in T.vectorized(LANES):
                lanes[lane] = lanes[lane] + weights[r, v * LANES + lane] * slopes[r, v * LANES + lane]
            for lane in T.vectorized(LANES):
                total[lane] = total[lane] + weights[r, v * LANES + lane]
        fold(lanes, operator.add)
        fold(total, operator.add)
        # Rows that see no key, or that there are not, have no weights; the others' add up to 1 but for rounding.
        lanes[0] = lanes[0] / T.Select(total[0] == T.float32(0), T.float32(1), total[0])
        for v in T.serial(vectors):
            for lane in T.vectorized(LANES):
                slopes[r, v * LANES + lane] = weights[r, v * LANES + lane] * (slopes[r, v * LANES + lane] - lanes[0])
            if c.dropout > 0:
                for lane in T.vectorized(LANES):
                    weights[r, v * LANES + lane] = c.share_kept * c.kept(
                        weights[r, v * LANES + lane], draws, b, head, row, v * LANES + lane
                    )


@script.macro
def _key_tile(c: AttentionCut, sums: Any, left: Any, right: Any, vectors: int, first: int, rows: Any, i: Any) -> None:
    """Add what a block of ``rows`` queries gives one tile of keys or values, ``vectors`` vectors from ``first`` on."""
    total = T.alloc_buffer((c.tile.rows, vectors, LANES), "float32")
    for r in T.unroll(c.tile.rows):
        for v in T.unroll(vectors):
            total[r, v, T.ramp(0, 1, LANES)] = sums[i * c.tile.rows + r, T.ramp((first + v) * LANES, 1, LANES)]
    add_products(
        total,
        c.tile.rows,
        vectors,
        rows,
        lambda r, t: left[t, i * c.tile.rows + r],
        lambda t, v: right[t, T.ramp((first + v) * LANES, 1, LANES)],
    )
    for r in T.unroll(c.tile.rows):
        for v in T.unroll(vectors):
            sums[i * c.tile.rows + r, T.ramp((first + v) * LANES, 1, LANES)] = total[r, v, T.ramp(0, 1, LANES)]


@script.macro
def _key_tiles(c: AttentionCut, sums: Any, left: Any, right: Any, vectors: int, block: Any) -> None:
    """Add what a block of queries gives the gradients of all keys, or values, of ``vectors`` vectors."""
    rows: T.let = T.min(c.block, c.queries - block * c.block)
    for i in T.serial((c.seen(block) + c.tile.rows - 1) // c.tile.rows):
        for whole in T.unroll(vectors // c.tile.vectors):
            _key_tile(c, sums, left, right, c.tile.vectors, whole * c.tile.vectors, rows, i)
        if vectors % c.tile.vectors != 0:
            _key_tile(
                c, sums, left, right, vectors % c.tile.vectors, vectors // c.tile.vectors * c.tile.vectors, rows, i
            )


@script.macro
def _write_sums(c: AttentionCut, result: Any, sums: Any, extent: int, b: Any, group: Any) -> None:
    """Write the gradients of the keys or values of a head."""
    for m in T.serial(c.keys):
        for v in T.unroll((extent + LANES - 1) // LANES):
            write_row(result, extent, v, b, m, group, lambda lane: sums[m, v * LANES + lane])  # noqa: B023 - expanded here


@script.macro
def _job(
    c: AttentionCut, gradient: Any, q: Any, k: Any, v: Any, mask: Any, draws: Any, logsumexp: Any, gq: Any, gk: Any,
    gv: Any, b: Any, group: Any,
) -> None:  # fmt: skip
    """One head of keys, with all heads of queries that it serves."""
    key_panels = T.alloc_buffer((c.panels, c.depth, c.tile.width), "float32")
    value_panels = T.alloc_buffer((c.panels, c.width, c.tile.width), "float32")
    keys = T.alloc_buffer((c.keys, c.depth_vectors * LANES), "float32")
    key_sums = T.alloc_buffer((c.key_rows, c.depth_vectors * LANES), "float32")
    value_sums = T.alloc_buffer((c.key_rows, c.width_vectors * LANES), "float32")
    queries = T.alloc_buffer((c.block, c.depth_vectors * LANES), "float32")
    gradients = T.alloc_buffer((c.block, c.width_vectors * LANES), "float32")
    weights = T.alloc_buffer((c.block, c.panels * c.tile.width + c.tile.rows), "float32")
    slopes = T.alloc_buffer((c.block, c.panels * c.tile.width + c.tile.rows), "float32")
    copy_across(c, key_panels, k, c.depth, b, group)
    copy_across(c, value_panels, v, c.width, b, group)
    copy_rows(keys, k, c.keys, c.keys - 1, c.depth, b, 0, group, T.float32(1))
    for m in T.serial(c.key_rows):
        for d in T.serial(c.depth_vectors):
            key_sums[m, T.ramp(d * LANES, 1, LANES)] = T.broadcast(T.float32(0), LANES)
        for e in T.serial(c.width_vectors):
            value_sums[m, T.ramp(e * LANES, 1, LANES)] = T.broadcast(T.float32(0), LANES)
    for member, block in T.grid(c.share, c.blocks):
        head: T.let = group * c.share + member
        copy_rows(queries, q, c.block, c.queries - 1, c.depth, b, block * c.block, head, T.float32(c.scale))
        copy_rows(gradients, gradient, c.block, c.queries - 1, c.width, b, block * c.block, head, T.float32(1))
        all_scores(c, weights, key_panels, queries, c.depth, block)
        weights_again(c, weights, logsumexp, mask, b, head, block)
        all_scores(c, slopes, value_panels, gradients, c.width, block)
        slopes_and_kept(c, slopes, weights, draws, b, head, block)
        weighted_sums(c, gq, c.depth, c.depth_vectors, slopes, keys, lambda _: T.float32(c.scale), b, head, block)
        _key_tiles(c, value_sums, weights, gradients, c.width_vectors, block)
        _key_tiles(c, key_sums, slopes, queries, c.depth_vectors, block)
    _write_sums(c, gk, key_sums, c.depth, b, group)
    _write_sums(c, gv, value_sums, c.width, b, group)


def _kernel(c: AttentionCut) -> tirx.PrimFunc:
    """The TIR function; what is absent has a parameter, too."""
    extents = c.extents_of_mask

    @script.prim_func(s_tir=True)
    def attention_backward(
        gradient: T.Buffer((c.batch, c.queries, c.heads, c.width), "float32"),
        q: T.Buffer((c.batch, c.queries, c.heads, c.depth), "float32"),
        k: T.Buffer((c.batch, c.keys, c.groups, c.depth), "float32"),
        v: T.Buffer((c.batch, c.keys, c.groups, c.width), "float32"),
        mask: T.Buffer(extents, "float32"),
        draws: T.Buffer((c.batch, 2), "float32"),
        logsumexp: T.Buffer((c.batch, c.heads, c.queries), "float32"),
        gq: T.Buffer((c.batch, c.queries, c.heads, c.depth), "float32"),
        gk: T.Buffer((c.batch, c.keys, c.groups, c.depth), "float32"),
        gv: T.Buffer((c.batch, c.keys, c.groups, c.width), "float32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        for job in T.parallel(c.batch * c.groups):
            _job(c, gradient, q, k, v, mask, draws, logsumexp, gq, gk, gv, job // c.groups, job % c.groups)

    return attention_backward
