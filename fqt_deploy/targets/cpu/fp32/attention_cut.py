"""How attention and its gradients are cut into jobs, blocks of queries and register tiles on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.attention_scores import is_kept
from fqt_deploy.ops.lib.counter_random import flat_index
from fqt_deploy.ops.lib.exponential import LOWEST_PRECISE, decay
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.fp32.matrix_tile import LANES, TileShape, ceil_div, round_up
from fqt_deploy.targets.kernel_arguments import arguments_of

_BLOCK_BYTES = 1 << 17
"""Upper bound of the bytes of the scores of a block of queries, unless that is fewer than ``_FEWEST_ROWS``."""
_FEWEST_ROWS, _MOST_ROWS = 24, 96
"""Bounds of the queries of a block: each block reads all keys and values from the cache."""
_JOBS = 8
"""Least number of jobs, if there are as many blocks: work for that many threads."""


@dataclass(frozen=True)
class AttentionCut:
    """One attention and how it is cut.

    Attributes:
        batch, queries, keys: extents B, N and M.
        heads, groups: heads of queries, and of keys and values.
        depth, width: numbers in a key and in a value, D and E.
        mask: extents of the mask; None without one.
        scale, causal, dropout: as those of the op.
        tile: what stays in registers.
    """

    batch: int
    queries: int
    keys: int
    heads: int
    groups: int
    depth: int
    width: int
    mask: tuple[int, ...] | None
    scale: float
    causal: bool
    dropout: float
    tile: TileShape

    @property
    def share(self) -> int:
        """Number of heads of queries for each of keys."""
        return self.heads // self.groups

    @property
    def columns(self) -> int:
        """Number of keys, rounded up to whole vectors."""
        return round_up(self.keys, LANES)

    @property
    def key_rows(self) -> int:
        """Number of keys, rounded up to what tiles of either shape reach."""
        return max(self.columns, round_up(self.keys, self.tile.rows))

    @property
    def panels(self) -> int:
        """Number of panels of keys, the last of which may be narrower."""
        return ceil_div(self.columns, self.tile.width)

    @property
    def depth_vectors(self) -> int:
        """Number of vectors of a key."""
        return ceil_div(self.depth, LANES)

    @property
    def width_vectors(self) -> int:
        """Number of vectors of a value."""
        return ceil_div(self.width, LANES)

    @property
    def block(self) -> int:
        """Number of queries of a block: whole tiles, about as many in each block."""
        fitting = _BLOCK_BYTES // (self.columns * 4)
        most = max(1, min(max(fitting, _FEWEST_ROWS), _MOST_ROWS) // self.tile.rows)
        tiles = ceil_div(self.queries, self.tile.rows)
        return ceil_div(tiles, ceil_div(tiles, most)) * self.tile.rows

    @property
    def blocks(self) -> int:
        """Number of blocks of queries."""
        return ceil_div(self.queries, self.block)

    @property
    def parts(self) -> int:
        """Number of jobs that share the blocks of a head."""
        return min(self.blocks, ceil_div(_JOBS, self.batch * self.heads))

    @property
    def extents_of_mask(self) -> tuple[int, ...]:
        """Extents of the kernel's parameter for the mask."""
        return self.mask or (1, 1, 1, 1)

    @property
    def share_kept(self) -> Any:
        """What weights that dropout keeps are multiplied by."""
        return tirx.const(1.0 / (1.0 - self.dropout), "float32")

    def kept(self, weight: Any, draws: Any, b: Any, head: Any, row: Any, column: Any) -> Any:
        """The ``weight`` of a key, or 0 if dropout drops it."""
        place = flat_index((head, row, column), (self.heads, self.queries, self.keys))
        return tirx.Select(is_kept(draws, self.dropout, b, place), weight, tirx.const(0.0, "float32"))

    def tiles(self, block: Any) -> Any:
        """Number of tiles of queries in a block."""
        return T.min(
            self.block // self.tile.rows, ceil_div(self.queries, self.tile.rows) - block * self.block // self.tile.rows
        )

    def seen(self, block: Any) -> Any:
        """Number of keys that some query of a block sees."""
        return T.min(self.keys, (block + 1) * self.block) if self.causal else self.keys

    def score(self, product: Any, mask: Any, b: Any, head: Any, row: Any, first: Any, lane: Any) -> Any:
        """The score of key ``first + lane`` from the product with a query that was scaled before.

        The lane is compared with what is left of the row, which no rule of TVM may see: it would compare numbers of
        keys instead, and make each of them of the first one.
        """
        if self.mask is not None:
            at = [0 if extent == 1 else i for extent, i in zip(self.mask[:3], (b, head, row), strict=True)]
            product = product + mask[(*at, T.min(first + lane, self.keys - 1))]
        if not self.causal and self.columns == self.keys:
            return product
        left = (T.min(self.keys, row + 1) if self.causal else self.keys) - first
        left = tirx.reinterpret("int32", tirx.reinterpret("float32", left))
        return tirx.Select(lane < left, product, tirx.const(float("-inf"), "float32"))


def attention_cut(function: tirx.PrimFunc, first: int, tile: TileShape) -> AttentionCut:
    """The attention of a kernel, for a processor with tiles of shape ``tile``.

    Args:
        function: its loop nests.
        first: the number of the parameter that is the queries; keys, values, a mask and draws follow.
        tile: what stays in registers.
    """
    arguments = _arguments(function)
    q, _, v, mask = function.params[first : first + 4]
    (batch, queries, heads, depth), (_, keys, groups, width) = ([int(d) for d in x.shape] for x in (q, v))
    extents = None if "mask" in arguments else tuple(int(d) for d in mask.shape)  # what is no tensor is written down
    return AttentionCut(
        batch, queries, keys, heads, groups, depth, width, extents, float(arguments["scale"]),
        bool(arguments["causal"]), float(arguments["dropout"]), tile,
    )  # fmt: skip


def without_absent(kernel: tirx.PrimFunc, function: tirx.PrimFunc, first: int) -> tirx.PrimFunc:
    """The kernel without the parameters for the mask and the draws that ``function`` does not have, which it ignores.

    Args:
        kernel: with queries, keys, values, mask and draws from parameter ``first`` on.
        function: the loop nests that it takes the place of.
        first: the number of the parameter that is the queries.
    """
    absent = {first + 3 + i for i, name in enumerate(("mask", "draws")) if name in _arguments(function)}
    kept = [parameter for i, parameter in enumerate(kernel.params) if i not in absent]
    return tirx.PrimFunc(kept, kernel.body, kernel.ret_type, kernel.attrs)


def _arguments(function: tirx.PrimFunc) -> dict[str, Any]:
    arguments = arguments_of(function)
    assert arguments is not None, "attention reads nothing that is inlined"
    return arguments


def weight(distance: Any) -> Any:
    """The exponential of a score less the largest or the sum of all: 0 for what is hidden."""
    return tirx.Select(distance < tirx.const(LOWEST_PRECISE, "float32"), tirx.const(0.0, "float32"), decay(distance))


@script.macro
def fold(lanes: Any, combine: Any) -> None:
    """Combine sixteen partial results in the first one, as a tree."""
    for lane in T.vectorized(8):
        lanes[lane] = combine(lanes[lane], lanes[lane + 8])
    for lane in T.vectorized(4):
        lanes[lane] = combine(lanes[lane], lanes[lane + 4])
    for lane in T.vectorized(2):
        lanes[lane] = combine(lanes[lane], lanes[lane + 2])
    lanes[0] = combine(lanes[0], lanes[1])


@script.macro
def copy_across(c: AttentionCut, panels: Any, source: Any, extent: int, b: Any, group: Any) -> None:
    """Copy keys or values into panels whose rows are their numbers: [panels, extent, width of a tile]."""
    for p, tile, d in T.grid(c.panels, c.tile.vectors, extent):
        for lane in T.serial(LANES):
            panels[p, d, tile * LANES + lane] = source[
                b, T.min(p * c.tile.width + tile * LANES + lane, c.keys - 1), group, d
            ]


@script.macro
def copy_rows(
    target: Any, source: Any, rows: Any, last: Any, extent: int, b: Any, first: Any, head: Any, factor: Any
) -> None:
    """Copy ``rows`` rows from ``first`` on, times ``factor``, into whole vectors; behind the ``last`` are copies of it.

    What fills up the last vector is zero.
    """
    for r in T.serial(rows):
        at: T.let = T.min(first + r, last)
        for v in T.serial(extent // LANES):
            for lane in T.vectorized(LANES):
                target[r, v * LANES + lane] = source[b, at, head, v * LANES + lane] * factor
        if extent % LANES != 0:
            for lane in T.serial(LANES):
                target[r, extent // LANES * LANES + lane] = T.if_then_else(
                    lane < extent % LANES, source[b, at, head, extent // LANES * LANES + lane] * factor, T.float32(0)
                )


@script.macro
def write_row(target: Any, extent: int, v: int, b: Any, row: Any, head: Any, value: Any) -> None:
    """Write vector ``v`` of a row of ``extent`` numbers; ``value`` gives one by its lane."""
    if v * LANES + LANES <= extent:
        for lane in T.vectorized(LANES):
            target[b, row, head, v * LANES + lane] = value(lane)
    else:
        for lane in T.serial(LANES):
            if v * LANES + lane < extent:
                target[b, row, head, v * LANES + lane] = value(lane)
