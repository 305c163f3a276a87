"""Scatters: independent columns are vector lanes and threads, sources are taken in order."""

from __future__ import annotations

from typing import Any, ClassVar

import tvm_ffi
from tvm import s_tir, tirx
from tvm.tirx.stmt import ForKind

from fqt_deploy.ops.lib.scatter import SCATTER
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.generic.elementwise import LANES, PARALLEL_ELEMENTS

COLUMN_TILES = (128, 64, 32, 16)
"""Columns of one job: a few lines of each row, which the prefetcher takes at once."""


class ScatterRule:
    """Takes functions with a block that scatters (``ops/lib/scatter.py``)."""

    ops: ClassVar[frozenset[str]] = frozenset()

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """None if nothing is scattered; the places are computed by a stage in front, which is short."""
        found: list[bool] = []

        def rewrite(block: Any) -> Any:
            if SCATTER not in block.annotations:
                return block
            found.append(True)
            copy, columns = block.body.seq
            body = tirx.SeqStmt([_tiled(copy), _columns(columns, int(block.annotations[SCATTER]))])
            return s_tir.SBlock(
                block.iter_vars, block.reads, block.writes, block.name_hint, body, block.init, block.alloc_buffers,
                block.match_buffers, {},
            )  # fmt: skip

        body = tvm_ffi.structural_map(function.body, (s_tir.SBlock, rewrite))
        return function.with_body(body) if found else None


def _columns(loop: Any, inner: int) -> Any:
    """Tiles of columns in parallel, in each all sources, of each source the columns of the tile as vectors."""
    sources, extent = loop.body, int(loop.extent)
    elements = extent * int(sources.extent)
    tile = next((t for t in COLUMN_TILES if inner % t == 0), min(inner, COLUMN_TILES[0]) if inner < LANES else 1)
    if extent % tile:
        tile = 1
    outer = tirx.Var("tile", "int32")

    def column(lane: Any) -> Any:
        return outer * tile + lane

    body = _lanes(sources.body, loop.loop_var, column, tile)
    inside = tirx.For(sources.loop_var, 0, sources.extent, ForKind.SERIAL, body)
    return _outermost(outer, extent // tile, inside, elements)


def _tiled(loop: Any) -> Any:
    """One loop over independent elements."""
    extent = int(loop.extent)
    tile = LANES if extent % LANES == 0 else 1
    outer = tirx.Var("tile", "int32")
    body = _lanes(loop.body, loop.loop_var, lambda lane: outer * tile + lane, tile)
    return _outermost(outer, extent // tile, body, extent)


def _outermost(var: Any, extent: int, body: Any, elements: int) -> Any:
    parallel = elements >= PARALLEL_ELEMENTS and extent > 1
    return tirx.For(var, 0, extent, ForKind.PARALLEL if parallel else ForKind.SERIAL, body)


def _lanes(body: Any, var: Any, position: Any, count: int) -> Any:
    """``body`` for ``count`` values of ``var``, as vectors where they are whole."""
    lane = tirx.Var("lane", "int32")
    at = position(lane) if count > 1 else position(tirx.const(0, "int32"))
    inside = tvm_ffi.structural_map(body, (tirx.Var, lambda v: at if v.same_as(var) else v))
    if count == 1:
        return inside
    return tirx.For(lane, 0, count, ForKind.VECTORIZED if count % LANES == 0 else ForKind.SERIAL, inside)
