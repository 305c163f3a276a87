"""The gradient of what is added to the scores of attention: slopes as in backward, summed where the mask repeats.

A job is a head of the mask, or a part of its rows, of one sample or of all: it adds to numbers that no other one does.
"""

from __future__ import annotations

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
    without_absent,
)
from fqt_deploy.targets.cpu.fp32.fp32_attention import all_scores
from fqt_deploy.targets.cpu.fp32.fp32_attention_backward import slopes_and_kept, weights_again
from fqt_deploy.targets.cpu.fp32.matrix_tile import LANES, ceil_div, tile_shape

_JOBS = 8
"""Least number of jobs, if the mask has rows enough: work for that many threads."""


class Fp32AttentionMaskGradientRule:
    """Takes every ``attention_mask_gradient``."""

    ops: ClassVar[frozenset[str]] = frozenset({"attention_mask_gradient"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """Returns the kernel in register tiles."""
        return without_absent(_kernel(attention_cut(function, 1, tile_shape(features))), function, 1)


@script.macro
def _add_row(c: AttentionCut, result: Any, slopes: Any, r: Any, b: Any, head: Any, row: Any, seen: Any) -> None:
    """Add the slopes of one query to a row of the result."""
    for v in T.serial(seen // LANES):
        for lane in T.vectorized(LANES):
            result[b, head, row, v * LANES + lane] = (
                result[b, head, row, v * LANES + lane] + slopes[r, v * LANES + lane]
            )
    for m in T.serial(seen % LANES):
        result[b, head, row, seen // LANES * LANES + m] = (
            result[b, head, row, seen // LANES * LANES + m] + slopes[r, seen // LANES * LANES + m]
        )


@script.macro
def _job(
    c: AttentionCut, gradient: Any, q: Any, k: Any, v: Any, mask: Any, draws: Any, logsumexp: Any,
    result: Any, parts: int, own_b: Any, own_head: Any, part: Any,
) -> None:  # fmt: skip
    """One part of the rows of a head of the mask."""
    key_panels = T.alloc_buffer((c.panels, c.depth, c.tile.width), "float32")
    value_panels = T.alloc_buffer((c.panels, c.width, c.tile.width), "float32")
    queries = T.alloc_buffer((c.block, c.depth_vectors * LANES), "float32")
    gradients = T.alloc_buffer((c.block, c.width_vectors * LANES), "float32")
    weights = T.alloc_buffer((c.block, c.panels * c.tile.width + c.tile.rows), "float32")
    slopes = T.alloc_buffer((c.block, c.panels * c.tile.width + c.tile.rows), "float32")
    for row, m in T.grid(c.extents_of_mask[2], c.keys):
        if row // c.block % parts == part:
            result[own_b, own_head, row, m] = T.float32(0)
    for sample, member in T.grid(c.batch // c.extents_of_mask[0], c.heads // c.extents_of_mask[1]):
        b: T.let = own_b + sample
        head: T.let = own_head + member
        copy_across(c, key_panels, k, c.depth, b, head // c.share)
        copy_across(c, value_panels, v, c.width, b, head // c.share)
        for step in T.serial(ceil_div(c.blocks, parts)):
            block: T.let = step * parts + part
            if block < c.blocks:
                copy_rows(queries, q, c.block, c.queries - 1, c.depth, b, block * c.block, head, T.float32(c.scale))
                copy_rows(gradients, gradient, c.block, c.queries - 1, c.width, b, block * c.block, head, T.float32(1))
                all_scores(c, weights, key_panels, queries, c.depth, block)
                weights_again(c, weights, logsumexp, mask, b, head, block)
                all_scores(c, slopes, value_panels, gradients, c.width, block)
                slopes_and_kept(c, slopes, weights, draws, b, head, block)
                for r in T.serial(T.min(c.block, c.queries - block * c.block)):
                    _add_row(
                        c, result, slopes, r, own_b, own_head, 0 if c.extents_of_mask[2] == 1 else block * c.block + r,
                        c.seen(block),
                    )  # fmt: skip


def _kernel(c: AttentionCut) -> tirx.PrimFunc:
    """The TIR function; without dropout it has a parameter for its draws, too."""
    assert c.mask is not None, "the op takes a mask"
    samples, heads, rows, _ = extents = c.mask
    parts = min(c.blocks, ceil_div(_JOBS, samples * heads)) if rows > 1 else 1

    @script.prim_func(s_tir=True)
    def attention_mask_gradient(
        gradient: T.Buffer((c.batch, c.queries, c.heads, c.width), "float32"),
        q: T.Buffer((c.batch, c.queries, c.heads, c.depth), "float32"),
        k: T.Buffer((c.batch, c.keys, c.groups, c.depth), "float32"),
        v: T.Buffer((c.batch, c.keys, c.groups, c.width), "float32"),
        mask: T.Buffer(extents, "float32"),
        draws: T.Buffer((c.batch, 2), "float32"),
        logsumexp: T.Buffer((c.batch, c.heads, c.queries), "float32"),
        result: T.Buffer(extents, "float32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        for job in T.parallel(samples * heads * parts):
            _job(
                c, gradient, q, k, v, mask, draws, logsumexp, result, parts, job // (heads * parts),
                job // parts % heads, job % parts,
            )  # fmt: skip

    return attention_mask_gradient
