"""Products of bits on tensor cores: tiles of rows and columns, contracted by AND and popcount.

A block stages 16 words of its rows and columns in shared memory, twice, so that copies run while it multiplies. Its four
warps hold the counts of their part of the tile in registers. The bit-planes of a row are rows of the tile that the same
thread holds, so that it weighs and adds them itself. Counts are integers: exact in any order.

The instruction takes fragments of eight words; which of them a thread reads for which slot is fixed by the PTX ISA
(``mma.m16n8k256``). Rows in shared memory are padded so that the 32 reads of a warp meet 32 different banks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets.cuda.kernel_builder import (
    REFERENCE_PROCESSORS,
    WARP,
    as_int32,
    barrier,
    ceil_div,
    integer,
    launch,
    local,
    loop,
    popcount,
    sequence,
    shared,
    store,
    unrolled,
    when,
    with_buffers,
)

WORDS = 16
"""Words of the contraction in one stage: two instructions deep, 64 bytes of a row."""
_MMA = "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc"
_COPIES = {1: "cp.async.ca.shared.global", 2: "cp.async.ca.shared.global", 4: "cp.async.cg.shared.global"}


@dataclass(frozen=True)
class Operand:
    """One side of the product: ``rows x planes`` strings of bits.

    Attributes:
        rows: rows, or columns of the result.
        planes: bit-planes of each; 1 on the right.
        chunk: words that are copied at once: consecutive words of a row, or the same word of consecutive rows.
        word_major: whether a chunk goes along rows.
        source: (row, plane, word) -> whether it exists (or True), buffer, indices of the first word of a chunk.
    """

    rows: int
    planes: int
    chunk: int
    word_major: bool
    source: Callable[[Any, Any, Any], tuple[Any, tirx.Buffer, list[Any]]]


@dataclass(frozen=True)
class Tile:
    """How a block divides its part of the result.

    Attributes:
        warps_down: warps along rows.
        warps_across: warps along columns.
        fragments_down: fragments of 16 rows of one warp, planes included.
        fragments_across: fragments of 8 columns of one warp.
        cost: time of one element of a large tile of this kind, relative to the best.
    """

    warps_down: int
    warps_across: int
    fragments_down: int
    fragments_across: int
    cost: float

    @property
    def threads(self) -> int:
        """Threads of the block."""
        return self.warps_down * self.warps_across * WARP

    @property
    def height(self) -> int:
        """Rows of the block, planes counted."""
        return self.warps_down * self.fragments_down * 16

    @property
    def width(self) -> int:
        """Columns of the block."""
        return self.warps_across * self.fragments_across * 8


_WIDE = (Tile(2, 2, 4, 8, 1.0), Tile(2, 2, 4, 4, 1.2), Tile(1, 4, 4, 8, 1.1), Tile(1, 4, 4, 2, 1.6))
TILES: dict[int, tuple[Tile, ...]] = {
    1: (*_WIDE, Tile(2, 2, 2, 4, 1.6)),
    2: (*_WIDE, Tile(2, 2, 2, 4, 1.6)),
    4: _WIDE,
    8: (Tile(1, 4, 8, 4, 1.1), Tile(1, 4, 8, 2, 1.4)),
}
"""Number of planes -> tiles: a warp's fragments are a multiple of the planes; two stages fit 48 KiB."""


def choose_tile(left: Operand, right: Operand, *, splittable: bool) -> Tile:
    """The tile with the least work, rounding and idle multiprocessors counted."""

    def work(tile: Tile) -> float:
        across, down = _blocks(left, right, tile)
        blocks = across * down
        busy = blocks if splittable else max(blocks, REFERENCE_PROCESSORS)
        return busy * tile.height * tile.width * tile.cost

    return min(TILES[left.planes], key=work)


def parts_of(left: Operand, right: Operand, words: int) -> int:
    """Into how many parts to split a long contraction with a small result, so that all multiprocessors work."""
    across, down = _blocks(left, right, choose_tile(left, right, splittable=True))
    return max(1, min(ceil_div(words, WORDS) // 4, ceil_div(4 * REFERENCE_PROCESSORS, across * down)))


def _blocks(left: Operand, right: Operand, tile: Tile) -> tuple[int, int]:
    """Tiles along columns and along rows."""
    return ceil_div(right.rows, tile.width), ceil_div(left.rows, tile.height // left.planes)


def bit_product(
    left: Operand,
    right: Operand,
    words: int,
    write: Callable[[Any, Any, Any, Any, Any], Any],
    *,
    count_rows: bool,
    parts: int = 1,
) -> Any:
    """A launch that counts the ones shared by each row and column.

    Args:
        left: rows of the result, with bit-planes.
        right: columns of the result; word-major.
        words: length of the contraction.
        write: (row, column, count, ones, split) -> statement; ``count`` is the sum over planes p of ``2^p`` times the
            shared ones, ``ones`` the same sum of the row's own ones (None unless ``count_rows``).
        count_rows: whether to count the row's own ones.
        parts: of the contraction, each with blocks of its own, see ``parts_of``.
    """
    tile = choose_tile(left, right, splittable=parts > 1)
    rows, columns = tile.height // left.planes, tile.width
    across, down = _blocks(left, right, tile)
    product = _Product(left, right, words, tile, ceil_div(ceil_div(words, WORDS), parts), write, count_rows)

    def body(block: Any, thread: Any) -> Any:
        column = block % across * columns
        row = block // across % down * rows
        return product.block(row, column, block // (across * down) if parts > 1 else integer(0), thread)

    return launch(across * down * parts, tile.threads, body)


@dataclass(frozen=True)
class _Product:
    left: Operand
    right: Operand
    words: int
    tile: Tile
    stages: int
    write: Callable[[Any, Any, Any, Any, Any], Any]
    count_rows: bool

    def block(self, row: Any, column: Any, part: Any, thread: Any) -> Any:
        """The code of one thread of the block at ``row``, ``column``."""
        tile, left = self.tile, self.left
        shape = (WORDS, tile.height + 8) if left.word_major else (tile.height, WORDS + 4)
        a = shared((2, *shape), "int32", "rows")
        b = shared((2, WORDS, tile.width + 8), "int32", "columns")
        counts = local((tile.fragments_down, tile.fragments_across, 4), "uint32", "counts")
        per_thread = ceil_div(tile.height, tile.threads)
        ones = local((per_thread,), "int32", "ones")
        table = shared((tile.height,), "int32", "row_ones")

        def copy(stage: Any) -> Any:
            word = (part * self.stages + stage) * WORDS
            slot = stage % 2
            return sequence(
                self._copy(left, a, slot, row, word, thread, tile.height),
                self._copy(self.right, b, slot, column, word, thread, tile.width),
            )

        def stage(step: Any) -> Any:
            return sequence(
                when(step + 1 < self.stages, copy(step + 1)),
                tirx.Evaluate(T.ptx["cp.async.commit_group"]()),
                tirx.Evaluate(T.ptx["cp.async.wait_group"](1)),
                barrier(),
                self._count_ones(a, ones, step % 2, thread) if self.count_rows else None,
                unrolled(WORDS // 8, lambda k: self._multiply(a, b, counts, step % 2, 8 * k, thread)),
                barrier(),
            )

        clear = unrolled(
            tile.fragments_down * tile.fragments_across * 4,
            lambda i: store(counts, tirx.const(0, "uint32"), *_unravel(i, (tile.fragments_across, 4))),
        )
        start = sequence(
            clear,
            unrolled(per_thread, lambda i: store(ones, integer(0), i)) if self.count_rows else None,
            copy(integer(0)),
            tirx.Evaluate(T.ptx["cp.async.commit_group"]()),
        )
        publish = None
        if self.count_rows:
            publish = sequence(
                unrolled(
                    per_thread,
                    lambda i: when(self._has_row(thread, i), store(table, ones[i], thread + i * tile.threads)),
                ),
                barrier(),
            )
        buffers = [a, b, counts, *([ones, table] if self.count_rows else [])]
        finish = self._finish(counts, table, row, column, part, thread)
        return with_buffers(buffers, sequence(start, loop(self.stages, stage), publish, finish))

    def _copy(
        self, operand: Operand, buffer: tirx.Buffer, slot: Any, first: Any, word: Any, thread: Any, height: int
    ) -> Any:
        """Bring ``WORDS`` words of the block's rows into ``buffer[slot]``; what does not exist is zero."""
        chunk, rows = operand.chunk, height // operand.planes
        chunks = WORDS * height // chunk
        short = (height if operand.word_major else WORDS) // chunk

        def one(index: Any) -> Any:
            inner, outer = index % short * chunk, index // short
            at_row, at_word = (inner, outer) if operand.word_major else (outer, inner)
            plane, local_row = (integer(0), at_row) if operand.planes == 1 else (at_row // rows, at_row % rows)
            exists, source, indices = operand.source(first + local_row, plane, word + at_word)
            target = [slot, at_word, at_row] if operand.word_major else [slot, at_row, at_word]
            call = T.ptx[_COPIES[chunk]](buffer.ptr_to(target), source.ptr_to(indices), 4 * chunk)
            zeros = unrolled(chunk, lambda i: store(buffer, integer(0), *target[:-1], target[-1] + i))
            return when(exists, tirx.Evaluate(call), zeros)

        threads = self.tile.threads
        whole, rest = divmod(chunks, threads)
        copies = loop(whole, lambda i: one(i * threads + thread), unroll=True) if whole else None
        tail = when(thread < rest, one(whole * threads + thread)) if rest else None
        return sequence(copies, tail)

    def _has_row(self, thread: Any, i: int) -> Any:
        last = (i + 1) * self.tile.threads <= self.tile.height
        return True if last else thread + i * self.tile.threads < self.tile.height

    def _count_ones(self, a: tirx.Buffer, ones: tirx.Buffer, slot: Any, thread: Any) -> Any:
        def row(i: int) -> Any:
            at = thread + i * self.tile.threads
            total: Any = ones[i]
            for word in range(WORDS):
                total = total + popcount(a[slot, at, word])
            return when(self._has_row(thread, i), store(ones, total, i))

        return unrolled(ceil_div(self.tile.height, self.tile.threads), row)

    def _multiply(self, a: tirx.Buffer, b: tirx.Buffer, counts: tirx.Buffer, slot: Any, word: int, thread: Any) -> Any:
        """One instruction for each pair of fragments."""
        tile = self.tile
        down, across = self._warp(thread)
        group, lane = thread % WARP // 4, thread % 4
        left = local((tile.fragments_down, 4), "uint32", "left")
        right = local((tile.fragments_across, 2), "uint32", "right")

        def load_left(i: int, r: int) -> Any:
            at_row = self._fragment_row(down, i) + group + r % 2 * 8
            at_word = lane + (word + r // 2 * 4)
            value = a[slot, at_word, at_row] if self.left.word_major else a[slot, at_row, at_word]
            return store(left, tirx.reinterpret("uint32", value), i, r)

        def load_right(j: int, r: int) -> Any:
            value = b[slot, lane + (word + r * 4), across * (tile.fragments_across * 8) + j * 8 + group]
            return store(right, tirx.reinterpret("uint32", value), j, r)

        def multiply(i: int, j: int) -> Any:
            sums = [counts[i, j, r] for r in range(4)]
            call = T.ptx[_MMA](*sums, *(left[i, r] for r in range(4)), *(right[j, r] for r in range(2)), *sums)
            return tirx.Evaluate(call)

        return with_buffers(
            [left, right],
            sequence(
                *(load_left(i, r) for i in range(tile.fragments_down) for r in range(4)),
                *(load_right(j, r) for j in range(tile.fragments_across) for r in range(2)),
                *(multiply(i, j) for i in range(tile.fragments_down) for j in range(tile.fragments_across)),
            ),
        )

    def _warp(self, thread: Any) -> tuple[Any, Any]:
        warp = thread // WARP
        return warp // self.tile.warps_across, warp % self.tile.warps_across

    def _fragment_row(self, down: Any, i: int) -> Any:
        """First row in shared memory of the warp's fragment ``i``: plane ``i % planes`` of group ``i // planes``."""
        planes = self.left.planes
        group = down * (self.tile.fragments_down // planes) + i // planes
        return group * 16 + i % planes * (self.tile.height // planes)

    def _finish(
        self, counts: tirx.Buffer, table: tirx.Buffer, row: Any, column: Any, part: Any, thread: Any
    ) -> Any:
        """Hand every count to ``write``."""
        tile, planes = self.tile, self.left.planes
        down, across = self._warp(thread)
        group, lane = thread % WARP // 4, thread % 4

        def element(i: int, j: int, r: int) -> Any:
            inner = (down * (tile.fragments_down // planes) + i) * 16 + group + r // 2 * 8
            at_row = row + inner
            at_column = column + across * (tile.fragments_across * 8) + j * 8 + lane * 2 + r % 2
            total, own = integer(0), integer(0)
            for plane in range(planes):
                total = total + (as_int32(counts[i * planes + plane, j, r]) << plane)
                own = own + (table[plane * (tile.height // planes) + inner] << plane)
            statement = self.write(at_row, at_column, total, own if self.count_rows else None, part)
            whole = self.left.rows % (tile.height // planes) == 0 and self.right.rows % tile.width == 0
            return when(True if whole else tirx.all(at_row < self.left.rows, at_column < self.right.rows), statement)

        return sequence(
            *(
                element(i, j, r)
                for i in range(tile.fragments_down // planes)
                for j in range(tile.fragments_across)
                for r in range(4)
            )
        )


def _unravel(flat: int, inner: Sequence[int]) -> tuple[int, ...]:
    across, rest = inner
    return flat // (across * rest), flat // rest % across, flat % rest
