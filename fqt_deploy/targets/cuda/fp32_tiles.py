"""Tiles of floats in shared memory that a block of 256 threads multiplies: by fused multiply-add, or in TF32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets.cuda.kernel_builder import (
    WARP,
    fused_multiply_add,
    local,
    loop,
    sequence,
    store,
    with_buffers,
)

THREADS = 256
SIDE = 16
"""Number of threads along each side of a block."""


class Fp32Tile(Protocol):
    """A rectangle of results and how it is computed; operands are [slot, term, row] in shared memory."""

    @property
    def height(self) -> int:
        """Number of rows of results."""

    @property
    def width(self) -> int:
        """Number of columns of results."""

    @property
    def depth(self) -> int:
        """Number of terms of the sums that are in shared memory at once."""

    @property
    def padding(self) -> int:
        """Number of floats after each term's rows, so that warps meet few banks twice."""

    @property
    def results(self) -> tuple[int, int]:
        """Numbers of rows and of columns of results that each thread has."""

    @property
    def run(self) -> int:
        """Number of neighbouring columns among a thread's."""

    def place(self, thread: Any, i: int, j: int) -> tuple[Any, Any]:
        """Row and column, in the tile, of a thread's result."""

    def multiply(self, a: tirx.Buffer, c: tirx.Buffer, sums: tirx.Buffer, slot: Any, thread: Any) -> Any:
        """Add the products of one slot to ``sums``."""


def tile_for(rows: int, columns: int, *, tf32: bool) -> Fp32Tile:
    """The largest tile that a result of ``rows`` by ``columns`` fills."""
    if tf32:
        return Tf32Tile(*(2 if extent >= 128 else 1 for extent in (rows, columns)))
    return MultiplyAddTile(_runs(rows), _runs(columns))


def _runs(extent: int) -> Runs:
    """The runs of a thread: longer ones need fewer reads, too long ones multiply what nobody asked for."""
    for neighbours in (1, 2):
        if extent <= SIDE * neighbours:
            return Runs(1, neighbours)
    return Runs(2 if extent >= 128 else 1, 4)


@dataclass(frozen=True)
class Runs:
    """Rows or columns of each thread: some runs of neighbours, read from shared memory as one vector."""

    count: int
    neighbours: int

    @property
    def length(self) -> int:
        """Number of rows, or columns, in all runs of a thread."""
        return self.count * self.neighbours

    def place(self, thread: Any, i: int) -> Any:
        """Where in the tile a thread's ``i``-th row, or column, is; runs are half a tile apart where there are two."""
        return (i // self.neighbours * SIDE + thread) * self.neighbours + i % self.neighbours


@dataclass(frozen=True)
class MultiplyAddTile:
    """Each multiply-add rounds once. A thread has ``down`` rows times ``across`` columns of results.

    Lanes are 4 down and 8 across: a warp reads 16 rows and 32 columns at a time, each vector of them once.
    """

    down: Runs
    across: Runs
    depth: ClassVar[int] = 8
    padding: ClassVar[int] = 4

    @property
    def height(self) -> int:
        """Number of rows of results, 16 to 128."""
        return SIDE * self.down.length

    @property
    def width(self) -> int:
        """Number of columns of results, 16 to 128."""
        return SIDE * self.across.length

    @property
    def results(self) -> tuple[int, int]:
        """Numbers of rows and of columns of results that each thread has, one to eight each."""
        return self.down.length, self.across.length

    @property
    def run(self) -> int:
        """Number of neighbouring columns among a thread's: one, two or four."""
        return self.across.neighbours

    def place(self, thread: Any, i: int, j: int) -> tuple[Any, Any]:
        """Row and column, in the tile, of a thread's result; threads side by side have runs side by side."""
        warp, lane = thread // WARP, thread % WARP
        return self.down.place(warp // 2 * 4 + lane // 8, i), self.across.place(warp % 2 * 8 + lane % 8, j)

    def multiply(self, a: tirx.Buffer, c: tirx.Buffer, sums: tirx.Buffer, slot: Any, thread: Any) -> Any:
        """Add the products of one slot to ``sums``, one outer product for each term."""
        rows, columns = self.results
        left, right = local((rows,), "float32", "left"), local((columns,), "float32", "right")

        def term(k: Any) -> Any:
            return sequence(
                *(store(left, a[slot, k, self.place(thread, i, 0)[0]], i) for i in range(rows)),
                *(store(right, c[slot, k, self.place(thread, 0, j)[1]], j) for j in range(columns)),
                *(
                    store(sums, fused_multiply_add(left[i], right[j], sums[i, j]), i, j)
                    for i in range(rows)
                    for j in range(columns)
                ),
            )

        return with_buffers([left, right], loop(self.depth, term, unroll=True))


@dataclass(frozen=True)
class Tf32Tile:
    """TF32 tensor cores, from sm_80: operands are rounded to 10 bits of mantissa, sums are fp32.

    Eight warps, 2 down and 4 across, have ``2 down`` by ``2 across`` fragments of 16 by 8 results.
    """

    down: int
    across: int
    depth: ClassVar[int] = 16
    padding: ClassVar[int] = 8
    run: ClassVar[int] = 2

    @property
    def height(self) -> int:
        """Number of rows of results, 64 or 128."""
        return 64 * self.down

    @property
    def width(self) -> int:
        """Number of columns of results, 64 or 128."""
        return 64 * self.across

    @property
    def results(self) -> tuple[int, int]:
        """Numbers of rows and columns of a thread: two rows of every fragment down, two columns of every one across."""
        return 4 * self.down, 4 * self.across

    def place(self, thread: Any, i: int, j: int) -> tuple[Any, Any]:
        """Row and column, in the tile, of a thread's result, as in the accumulators of ``mma.m16n8k8``."""
        warp, lane = thread // WARP, thread % WARP
        row = warp // 4 * (32 * self.down) + i // 2 * 16 + i % 2 * 8 + lane // 4
        return row, warp % 4 * (16 * self.across) + j // 2 * 8 + lane % 4 * 2 + j % 2

    def multiply(self, a: tirx.Buffer, c: tirx.Buffer, sums: tirx.Buffer, slot: Any, thread: Any) -> Any:
        """Add the products of one slot to ``sums``, eight terms with each instruction."""
        fragments = 2 * self.down, 2 * self.across
        warp, lane = thread // WARP, thread % WARP
        row, column = warp // 4 * (32 * self.down) + lane // 4, warp % 4 * (16 * self.across) + lane // 4
        left = local((fragments[0], 4), "uint32", "left")
        right = local((fragments[1], 2), "uint32", "right")
        call = T.ptx["mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"]

        def rounded(target: tirx.Buffer, value: Any, *at: int) -> Any:
            return tirx.Evaluate(T.ptx["cvt.rna.tf32.f32"](target[at], value))

        def product(i: int, j: int) -> Any:
            results = [sums[2 * i + r // 2, 2 * j + r % 2] for r in range(4)]
            operands = [*(left[i, r] for r in range(4)), *(right[j, r] for r in range(2))]
            return tirx.Evaluate(call(*results, *operands, *results))

        def eight(k: Any) -> Any:
            term = k * 8 + lane % 4
            rows = [(i, r) for i in range(fragments[0]) for r in range(4)]
            columns = [(j, r) for j in range(fragments[1]) for r in range(2)]
            return sequence(
                *(rounded(left, a[slot, term + r // 2 * 4, row + i * 16 + r % 2 * 8], i, r) for i, r in rows),
                *(rounded(right, c[slot, term + r * 4, column + j * 8], j, r) for j, r in columns),
                *(product(i, j) for i in range(fragments[0]) for j in range(fragments[1])),
            )

        return with_buffers([left, right], loop(self.depth // 8, eight, unroll=True))
