"""Scatters and running sums: independent columns are vector lanes and threads, each works in order."""

from __future__ import annotations

from typing import Any, ClassVar

import tvm_ffi
from tvm import s_tir, tirx
from tvm.tirx.stmt import ForKind

from fqt_deploy.ops.lib.in_order import IN_ORDER, loops_of
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.generic.elementwise import LANES, PARALLEL_ELEMENTS

COLUMN_TILES = (128, 64, 32, 16)
"""Columns of one job: a few lines of each row, which the prefetcher takes at once."""


class InOrderRule:
    """Takes functions with a block of independent columns (``ops/lib/in_order.py``)."""

    ops: ClassVar[frozenset[str]] = frozenset()

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """None without such a block; stages in front of it are short, and stay as they are."""
        found: list[bool] = []

        def rewrite(block: Any) -> Any:
            if IN_ORDER not in block.annotations:
                return block
            found.append(True)
            inner = int(block.annotations[IN_ORDER])
            loops = [_columns(lp, inner) if isinstance(lp.body, tirx.For) else _tiled(lp) for lp in loops_of(block)]
            body = loops[0] if len(loops) == 1 else tirx.SeqStmt(loops)
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
