"""Products of bits: tiles of rows and columns, contracted by whatever instruction the architecture has for it.

A block stages 16 words of its rows and columns in shared memory, twice, so that copies run while it multiplies. Its
threads hold the counts of their part of the tile in registers. The bit-planes of a row are rows of the tile that the
same thread holds, so that it weighs and adds them itself. Counts are integers: exact in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets.cuda.bit_form import BitForm, weighted
from fqt_deploy.targets.cuda.bit_operand import Operand, Tile
from fqt_deploy.targets.cuda.kernel_builder import (
    REFERENCE_PROCESSORS,
    WARP,
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
    vector,
    when,
    with_buffers,
)
from fqt_deploy.targets.cuda.shared_layout import WORDS, SharedLayout

Write = Callable[[Any, Any, Any, Any, Any], Any]
_COPIES = {1: "cp.async.ca.shared.global", 2: "cp.async.ca.shared.global", 4: "cp.async.cg.shared.global"}


def choose_tile(form: BitForm, left: Operand, right: Operand, *, splittable: bool) -> Tile:
    """The tile with the least work, rounding and idle multiprocessors counted."""

    def work(tile: Tile) -> float:
        across, down = _blocks(left, right, tile)
        blocks = across * down
        busy = blocks if splittable else max(blocks, REFERENCE_PROCESSORS)
        return busy * tile.height * tile.width * tile.cost

    return min(form.tiles[left.planes], key=work)


def parts_of(form: BitForm, left: Operand, right: Operand, words: int) -> int:
    """Number of parts to split a long contraction with a small result into, so that all multiprocessors work."""
    across, down = _blocks(left, right, choose_tile(form, left, right, splittable=True))
    return max(1, min(ceil_div(words, WORDS) // 4, ceil_div(4 * REFERENCE_PROCESSORS, across * down)))


def _blocks(left: Operand, right: Operand, tile: Tile) -> tuple[int, int]:
    """Numbers of tiles along columns and along rows."""
    return ceil_div(right.rows, tile.width), ceil_div(left.rows, tile.height // left.planes)


def bit_product(
    form: BitForm, left: Operand, right: Operand, words: int, write: Write, *, count_rows: bool, parts: int = 1
) -> Any:
    """A launch that counts the ones shared by each row and column.

    Args:
        form: how the architecture multiplies; must have tiles for ``left.planes``.
        left: rows of the result, with bit-planes.
        right: columns of the result; word-major.
        words: length of the contraction.
        write: (row, column, count, ones, split) -> statement; ``count`` is the sum over planes p of ``2^p`` times the
            shared ones, ``ones`` the same sum of the row's own ones (None unless ``count_rows``).
        count_rows: whether to count the row's own ones.
        parts: number of parts of the contraction, each with blocks of its own, see ``parts_of``.
    """
    tile = choose_tile(form, left, right, splittable=parts > 1)
    rows, columns = tile.height // left.planes, tile.width
    across, down = _blocks(left, right, tile)
    stages = ceil_div(ceil_div(words, WORDS), parts)

    def body(block: Any, thread: Any) -> Any:
        column = block % across * columns
        row = block // across % down * rows
        part = block // (across * down) if parts > 1 else integer(0)
        return _Block(form, tile, left, right, stages, write, count_rows, row, column, part, thread).code()

    return launch(across * down * parts, tile.threads, body)


@dataclass(frozen=True)
class _Staged:
    """The rows of one operand in shared memory, copied by all threads of the block."""

    operand: Operand
    layout: SharedLayout
    buffer: tirx.Buffer
    height: int
    threads: int
    first: Any
    thread: Any

    @property
    def turns(self) -> int:
        """Number of chunks that a thread copies."""
        return ceil_div(WORDS * self.height // self.layout.chunk, self.threads)

    def _each(self, copy: Callable[[int, Any, Any], Any], word: Any) -> Any:
        """The statements ``copy(turn, target row and word, source)`` for every chunk of this thread."""
        chunks, rows = WORDS * self.height // self.layout.chunk, self.height // self.operand.planes

        def one(turn: int) -> Any:
            at_row, at_word = self.layout.place(turn * self.threads + self.thread)
            plane, local_row = (integer(0), at_row) if self.operand.planes == 1 else (at_row // rows, at_row % rows)
            found = self.operand.source(self.first + local_row, plane, word + at_word)
            rest = chunks - turn * self.threads
            return when(True if rest >= self.threads else self.thread < rest, copy(turn, (at_row, at_word), found))

        return unrolled(self.turns, one)

    def copy(self, slot: Any, word: Any) -> Any:
        """Bring ``WORDS`` words from ``word`` on into ``slot`` asynchronously; what does not exist is zero."""
        chunk = self.layout.chunk

        def one(_: int, target: tuple[Any, Any], found: tuple[Any, Any, list[Any]]) -> Any:
            exists, source, indices = found
            place = self.buffer.ptr_to([slot, *self.layout.at(*target)])
            call = T.ptx[_COPIES[chunk]](place, source.ptr_to(indices), 4 * chunk)
            zeros = unrolled(chunk, lambda i: store(self.buffer, integer(0), slot, *self._word(target, i)))
            return when(exists, tirx.Evaluate(call), zeros)

        return self._each(one, word)

    def fetch(self, held: tirx.Buffer, word: Any) -> Any:
        """Read the same words into registers ``held`` [turns, chunk]."""
        chunk = self.layout.chunk

        def one(turn: int, _: tuple[Any, Any], found: tuple[Any, Any, list[Any]]) -> Any:
            exists, source, indices = found
            read = vector(chunk, lambda i: store(held, source[(*indices[:-1], indices[-1] + i)], turn, i))
            return when(exists, read, unrolled(chunk, lambda i: store(held, integer(0), turn, i)))

        return self._each(one, word)

    def put(self, held: tirx.Buffer, slot: Any) -> Any:
        """Write the registers into ``slot``."""

        def one(turn: int, target: tuple[Any, Any], _: Any) -> Any:
            word = [slot, *self._word(target, 0)]
            return vector(self.layout.chunk, lambda i: store(self.buffer, held[turn, i], *word[:-1], word[-1] + i))

        return self._each(one, integer(0))

    def _word(self, target: tuple[Any, Any], i: int) -> list[Any]:
        row, word = self.layout.within(i)
        return self.layout.at(target[0] + row, target[1] + word)


@dataclass(frozen=True)
class _Tally:
    """The counts of ones in every row of an operand: a thread counts some rows, in the end all can read them."""

    staged: _Staged
    ones: tirx.Buffer
    table: tirx.Buffer

    def _each(self, body: Callable[[int, Any], Any]) -> Any:
        """The statements ``body(turn, row)`` for all rows of this thread."""
        threads, height, thread = self.staged.threads, self.staged.height, self.staged.thread

        def one(turn: int) -> Any:
            at = thread + turn * threads
            return when(True if (turn + 1) * threads <= height else at < height, body(turn, at))

        return unrolled(int(self.ones.shape[0]), one)

    def clear(self) -> Any:
        return unrolled(int(self.ones.shape[0]), lambda i: store(self.ones, integer(0), i))

    def add(self, slot: Any) -> Any:
        def row(turn: int, at: Any) -> Any:
            total: Any = self.ones[turn]
            for word in range(WORDS):
                total = total + popcount(self.staged.buffer[(slot, *self.staged.layout.at(at, word))])
            return store(self.ones, total, turn)

        return self._each(row)

    def publish(self) -> Any:
        return self._each(lambda turn, at: store(self.table, self.ones[turn], at))


def _tally(staged: _Staged, name: str) -> _Tally:
    ones = local((ceil_div(staged.height, staged.threads),), "int32", f"{name}_count")
    return _Tally(staged, ones, shared((staged.height,), "int32", f"{name}_ones"))


@dataclass(frozen=True)
class _Block:
    """The code of one thread of the block at ``row``, ``column``."""

    form: BitForm
    tile: Tile
    left: Operand
    right: Operand
    stages: int
    write: Write
    count_rows: bool
    row: Any
    column: Any
    part: Any
    thread: Any

    def code(self) -> Any:
        form, tile, planes = self.form, self.tile, self.left.planes
        a = self._staged(self.left, tile.height, self.row, "rows")
        b = self._staged(self.right, tile.width, self.column, "columns")
        groups = tile.fragments_down // planes if form.merges_planes else tile.fragments_down
        counts = local((groups, tile.fragments_across, 4), "uint32", "counts")
        rows = _tally(a, "row") if self.count_rows or form.differences else None
        columns = _tally(b, "column") if form.differences else None
        tallies = [tally for tally in (rows, columns) if tally is not None]

        def multiply(slot: Any) -> Any:
            sides, layouts = (a.buffer, b.buffer), (a.layout, b.layout)
            return sequence(
                form.multiply(tile, planes, sides, layouts, counts, slot, self.thread),
                *(tally.add(slot) for tally in tallies),
                form.complete(),
            )

        run = self._overlapped if form.asynchronous else self._prefetched
        clear = [
            store(counts, tirx.const(0, "uint32"), i, j, r)
            for i in range(groups) for j in range(tile.fragments_across) for r in range(4)
        ]  # fmt: skip
        work = sequence(
            *clear,
            *(tally.clear() for tally in tallies),
            run(a, b, multiply),
            *(tally.publish() for tally in tallies),
            barrier() if tallies else None,
            self._finish(counts, rows, columns),
        )
        own = [buffer for tally in tallies for buffer in (tally.ones, tally.table)]
        return with_buffers([a.buffer, b.buffer, counts, *own], work)

    def _staged(self, operand: Operand, height: int, first: Any, name: str) -> _Staged:
        layout = self.form.layout(operand, height)
        buffer = shared((2, *layout.shape), "int32", name)
        return _Staged(operand, layout, buffer, height, self.tile.threads, first, self.thread)

    def _overlapped(self, a: _Staged, b: _Staged, multiply: Callable[[Any], Any]) -> Any:
        """All stages, whose copies run while earlier words are multiplied."""

        def copy(stage: Any) -> Any:
            word = (self.part * self.stages + stage) * WORDS
            return sequence(a.copy(stage % 2, word), b.copy(stage % 2, word))

        def stage(step: Any) -> Any:
            return sequence(
                when(step + 1 < self.stages, copy(step + 1)),
                tirx.Evaluate(T.ptx["cp.async.commit_group"]()),
                tirx.Evaluate(T.ptx["cp.async.wait_group"](1)),
                self.form.publish(),
                barrier(),
                multiply(step % 2),
                barrier(),
            )

        start = sequence(copy(integer(0)), tirx.Evaluate(T.ptx["cp.async.commit_group"]()))
        return sequence(start, loop(self.stages, stage))

    def _prefetched(self, a: _Staged, b: _Staged, multiply: Callable[[Any], Any]) -> Any:
        """All stages; the next one's words are on their way to registers during a multiplication."""
        held = [local((side.turns, side.layout.chunk), "int32", "held") for side in (a, b)]

        def fetch(stage: Any) -> Any:
            word = (self.part * self.stages + stage) * WORDS
            return sequence(*(side.fetch(registers, word) for side, registers in zip((a, b), held, strict=True)))

        def put(slot: Any) -> Any:
            return sequence(*(side.put(registers, slot) for side, registers in zip((a, b), held, strict=True)))

        def stage(step: Any) -> Any:
            more = step + 1 < self.stages
            return sequence(when(more, fetch(step + 1)), multiply(step % 2), when(more, put((step + 1) % 2)), barrier())

        start = sequence(fetch(integer(0)), put(integer(0)), barrier())
        return with_buffers(held, sequence(start, loop(self.stages, stage)))

    def _finish(self, counts: tirx.Buffer, rows: _Tally | None, columns: _Tally | None) -> Any:
        """Hand every count to ``write``."""
        tile, planes = self.tile, self.left.planes
        down, across = tile.warp(self.thread)
        group, lane = self.thread % WARP // 4, self.thread % 4
        height = tile.height // planes

        def element(g: int, j: int, r: int) -> Any:
            inner = self.form.first_row(tile, planes, down, g) + group + r // 2 * 8
            inner_column = across * (tile.fragments_across * 8) + j * 8 + lane * 2 + r % 2
            at_row, at_column = self.row + inner, self.column + inner_column
            total, own = weighted(self.form, counts, planes, g, j, r), integer(0)
            if rows is not None:
                for plane in range(planes):
                    own = own + (rows.table[plane * height + inner] << plane)
            if columns is not None:  # the ones of both less the bits that differ are twice the shared ones
                total = (own + ((1 << planes) - 1) * columns.table[inner_column] - total) >> 1
            statement = self.write(at_row, at_column, total, own if self.count_rows else None, self.part)
            whole = self.left.rows % height == 0 and self.right.rows % tile.width == 0
            return when(True if whole else tirx.all(at_row < self.left.rows, at_column < self.right.rows), statement)

        return sequence(
            *(
                element(g, j, r)
                for g in range(tile.fragments_down // planes)
                for j in range(tile.fragments_across)
                for r in range(4)
            )
        )
