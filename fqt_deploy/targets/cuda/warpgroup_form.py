"""Bits multiplied by a warpgroup, straight from shared memory: ``wgmma`` of sm_90a."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets.cuda.bit_operand import Operand, Tile
from fqt_deploy.targets.cuda.kernel_builder import sequence
from fqt_deploy.targets.cuda.shared_layout import WORDS, CoreMatrices

TILES: dict[int, tuple[Tile, ...]] = {
    1: (
        Tile(4, 1, 2, 16, 1.0),
        Tile(4, 1, 1, 16, 1.2),
        Tile(4, 1, 2, 8, 1.2),
        Tile(4, 1, 1, 8, 1.4),
        Tile(4, 1, 1, 4, 1.8),
    ),
    2: (Tile(4, 1, 2, 16, 1.0), Tile(4, 1, 2, 8, 1.2), Tile(4, 1, 2, 4, 1.6)),
    3: (Tile(4, 1, 3, 8, 1.0), Tile(4, 1, 3, 4, 1.4)),
    4: (Tile(4, 1, 4, 8, 1.0), Tile(4, 1, 4, 4, 1.4)),
}  # fmt: skip
"""Number of planes -> tiles: 64 rows of each plane, two stages in 48 KiB. Eight planes do not fit."""


class WarpgroupForm:
    """The form by AND and popcount, ``m64nNk256``: four warps multiply 64 rows and all columns of the block at once."""

    tiles: ClassVar[Mapping[int, tuple[Tile, ...]]] = TILES
    asynchronous = True
    differences = False
    merges_planes = False

    def layout(self, operand: Operand, height: int) -> CoreMatrices:
        """The layout in core matrices: a chunk stays within their 16 bytes of a row."""
        return CoreMatrices(height, 1 if operand.word_major else operand.chunk)

    def publish(self) -> Any:
        """The instruction reads shared memory through the asynchronous proxy; copies write through the generic one."""
        return tirx.Evaluate(T.ptx["fence.proxy.async.shared::cta"]())

    def complete(self) -> Any:
        """The statement that waits for all products."""
        return tirx.Evaluate(T.ptx["wgmma.wait_group.sync.aligned"](0))

    def first_row(self, tile: Tile, planes: int, down: Any, group: int) -> Any:
        """Each warp holds 16 of the 64 rows of an instruction."""
        return group * 64 + down * 16

    def multiply(
        self, tile: Tile, planes: int, sides: tuple[tirx.Buffer, tirx.Buffer], layouts: tuple[Any, Any], counts: Any,
        slot: Any, thread: Any,
    ) -> Any:  # fmt: skip
        """The products of one stage: an instruction for 64 rows and eight words each; they run until ``complete``."""
        (a, b), (rows, columns) = sides, layouts
        call = T.ptx[f"wgmma.mma_async.sync.aligned.m64n{tile.width}k256.s32.b1.b1.and.popc"]

        def product(i: int, word: int) -> Any:
            first = i // planes * 64 + i % planes * (tile.height // planes)
            sums = [counts[i, j, r] for j in range(tile.fragments_across) for r in range(4)]
            left = _descriptor(a, rows, slot, first, word)
            return tirx.Evaluate(call(*sums, left, _descriptor(b, columns, slot, 0, word), tirx.const(True, "bool")))

        return sequence(
            tirx.Evaluate(T.ptx["wgmma.fence.sync.aligned"]()),
            *(product(i, word) for word in range(0, WORDS, 8) for i in range(tile.fragments_down)),
            tirx.Evaluate(T.ptx["wgmma.commit_group.sync.aligned"]()),
        )


def _descriptor(buffer: tirx.Buffer, layout: CoreMatrices, slot: Any, row: int, word: int) -> Any:
    """Matrix descriptor of the rows from ``row`` on and two core matrices from ``word`` on."""
    address = T.cuda.cvta_generic_to_shared(buffer.ptr_to([slot, *layout.at(row, word)]))
    start = (address.astype("uint64") & tirx.const(0x3FFFF, "uint64")) >> tirx.const(4, "uint64")
    return start | tirx.const(layout.descriptor, "uint64")
