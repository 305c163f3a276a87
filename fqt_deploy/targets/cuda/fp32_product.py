"""fp32 products: tiles in shared memory, a block of results in the registers of each thread.

One rule for all of them: the operands' indices say which axes are rows, columns and contraction. The next tile is on
its way from memory to registers while this one is multiplied, and goes to a second place in shared memory. A long
contraction with a small result is split by index, so that results do not depend on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import tirx

from fqt_deploy.ops.lib.fp32_products import FP32_PRODUCTS
from fqt_deploy.targets.cuda import generic
from fqt_deploy.targets.cuda.contraction import VECTOR, Contraction, Side, contraction_of
from fqt_deploy.targets.cuda.features import CudaFeatures
from fqt_deploy.targets.cuda.fp32_tiles import THREADS, Fp32Tile, tile_for
from fqt_deploy.targets.cuda.kernel_builder import (
    REFERENCE_PROCESSORS,
    barrier,
    ceil_div,
    integer,
    launch,
    local,
    loop,
    scratch,
    sequence,
    shared,
    store,
    unrolled,
    vector,
    when,
    with_buffers,
)
from fqt_deploy.targets.cuda.loop_nest import Axis, LoopNest, Value, formulas_of, substituted

CHUNK_TERMS = 512
"""A contraction is split only into parts of at least this many terms."""


class Fp32ProductRule:
    """Takes every fp32 convolution and matrix product."""

    ops: ClassVar[frozenset[str]] = FP32_PRODUCTS

    def apply(self, function: tirx.PrimFunc, features: CudaFeatures) -> tirx.PrimFunc | None:
        """Returns the scheduled product, or None where the loop nest is no product of two operands."""
        (nest,) = formulas_of(function).nests
        contraction = contraction_of(nest)
        if contraction is None:
            return None
        contraction, copies = contraction.with_copies()
        launches = [*(generic.elementwise([stage]) for stage in copies), _product(contraction, features)]
        buffers = [value.buffer for stage in copies for value in stage.values]
        return function.with_body(with_buffers(buffers, sequence(*launches)))


def _product(contraction: Contraction, features: CudaFeatures) -> Any:
    """The product, and where its contraction is split, the sum of the parts."""
    nest, left, right = contraction.nest, contraction.left, contraction.right
    tile = tile_for(left.extent, right.extent, tf32=features.tf32)
    down, across = ceil_div(left.extent, tile.height), ceil_div(right.extent, tile.width)
    wanted = ceil_div(2 * REFERENCE_PROCESSORS, down * across * contraction.size)
    parts = max(1, min(wanted, nest.terms // CHUNK_TERMS))
    terms = ceil_div(ceil_div(nest.terms, parts), tile.depth) * tile.depth
    (value,) = nest.values
    partial = scratch((parts, nest.size), "float32", "partial")

    def body(block: Any, thread: Any) -> Any:
        column, row = block % across * tile.width, block // across % down * tile.height
        rest = block // (across * down)
        b, part = rest % contraction.size, rest // contraction.size
        target = None if parts == 1 else (partial, part)
        return _Block(contraction, tile, b, row, column, part * terms, terms, parts, target, thread).code()

    product = launch(across * down * contraction.size * parts, THREADS, body)
    if parts == 1:
        return product
    part = Axis(tirx.Var("part", "int32"), parts)
    total = Value(
        value.buffer,
        value.indices,
        partial[part.var, _flat(nest, [axis.var for axis in nest.axes])],
        value.initial,
        value.combine,
    )
    combine = generic.reduction(LoopNest("parts", nest.axes, (part,), (total,)))
    return with_buffers([partial], sequence(product, combine))


def _flat(nest: LoopNest, at: list[Any]) -> Any:
    """The row-major number of the element of the result at ``at``."""
    flat: Any = integer(0)
    for axis, where in zip(nest.axes, at, strict=True):
        flat = flat * axis.extent + where
    return flat


@dataclass(frozen=True)
class _Operand:
    """The tile of one operand: read into registers, then written to shared memory, terms outermost."""

    contraction: Contraction
    side: Side
    depth: int
    size: int
    buffer: tirx.Buffer
    held: tirx.Buffer
    batch: Any
    first: Any
    thread: Any
    whole_terms: bool

    def _each(self, body: Any) -> Any:
        """The statements ``body(turn, term, row)`` for the first element of each vector that this thread carries."""
        width, depth, size = self.side.width, self.depth, self.size
        vectors = depth * size // width

        def one(turn: int) -> Any:
            index = turn * THREADS + self.thread
            if self.side.along_terms:
                inner, outer = index % (depth // width) * width, index // (depth // width)
            else:
                inner, outer = index // (size // width), index % (size // width) * width
            rest = vectors - turn * THREADS
            return when(True if rest >= THREADS else self.thread < rest, body(turn, inner, outer))

        return unrolled(ceil_div(vectors, THREADS), one)

    def fetch(self, begin: Any) -> Any:
        """Read the elements of the terms from ``begin`` on."""
        width, extent, terms = self.side.width, self.side.extent, self.contraction.nest.terms

        def one(turn: int, inner: Any, outer: Any) -> Any:
            at, term = self.first + outer, begin + inner
            guard, source, indices = self.contraction.operand(self.side, self.batch, at, term)
            needed = [
                *([] if extent % self.size == 0 else [at < extent]),
                *([] if self.whole_terms else [term < terms]),
                *([] if guard is True else [guard]),
            ]
            read = vector(width, lambda v: store(self.held, source[(*indices[:-1], indices[-1] + v)], turn, v))
            zeros = unrolled(width, lambda v: store(self.held, tirx.const(0.0, "float32"), turn, v))
            return when(tirx.all(*needed), read, zeros) if needed else read

        return self._each(one)

    def put(self, slot: Any) -> Any:
        """Write them to ``slot`` of shared memory."""
        width = self.side.width

        def one(turn: int, inner: Any, outer: Any) -> Any:
            if self.side.along_terms:
                return unrolled(width, lambda v: store(self.buffer, self.held[turn, v], slot, inner + v, outer))
            return vector(width, lambda v: store(self.buffer, self.held[turn, v], slot, inner, outer + v))

        return self._each(one)


@dataclass(frozen=True)
class _Block:
    """The code of one thread of a block."""

    contraction: Contraction
    tile: Fp32Tile
    batch: Any
    row: Any
    column: Any
    begin: Any
    terms: int
    parts: int
    partial: tuple[tirx.Buffer, Any] | None
    thread: Any

    def code(self) -> Any:
        tile = self.tile
        sums = local(tile.results, "float32", "sums")
        a = self._operand(self.contraction.left, tile.height, self.row, "rows")
        c = self._operand(self.contraction.right, tile.width, self.column, "columns")

        def fetch(step: Any) -> Any:
            return sequence(*(side.fetch(self.begin + step * tile.depth) for side in (a, c)))

        def put(slot: Any) -> Any:
            return sequence(*(side.put(slot) for side in (a, c)))

        steps = self.terms // tile.depth

        def stage(step: Any) -> Any:
            more = step + 1 < steps
            return sequence(
                when(more, fetch(step + 1)),
                tile.multiply(a.buffer, c.buffer, sums, step % 2, self.thread),
                when(more, put((step + 1) % 2)),
                barrier(),
            )

        clear = unrolled(
            tile.results[0] * tile.results[1],
            lambda i: store(sums, tirx.const(0.0, "float32"), i // tile.results[1], i % tile.results[1]),
        )
        start = sequence(clear, fetch(integer(0)), put(integer(0)), barrier())
        buffers = [a.buffer, c.buffer, a.held, c.held, sums]
        return with_buffers(buffers, sequence(start, loop(steps, stage), self._finish(sums)))

    def _operand(self, side: Side, size: int, first: Any, name: str) -> _Operand:
        tile = self.tile
        buffer = shared((2, tile.depth, size + tile.padding), "float32", name)
        turns = ceil_div(tile.depth * size, side.width * THREADS)
        held = local((turns, side.width), "float32", f"held_{name}")
        whole = self.parts * self.terms == self.contraction.nest.terms
        return _Operand(self.contraction, side, tile.depth, size, buffer, held, self.batch, first, self.thread, whole)

    def _finish(self, sums: tirx.Buffer) -> Any:
        """Write every run of neighbouring columns, as a vector where it is one."""
        tile, contraction = self.tile, self.contraction
        left, right = contraction.left.extent, contraction.right.extent
        width = tile.run if contraction.writes_vectors and tile.run <= VECTOR else 1

        def write(i: int, j: int) -> Any:
            row, column = tile.place(self.thread, i, j)
            at_row, at_column = self.row + row, self.column + column
            at = contraction.positions(self.batch, at_row, at_column)
            whole = left % tile.height == 0 and right % tile.width == 0
            exists = True if whole else tirx.all(at_row < left, at_column < right)
            return when(exists, vector(width, lambda v: self._store(at, v, sums[i, j + v])))

        return sequence(*(write(i, j) for i in range(tile.results[0]) for j in range(0, tile.results[1], width)))

    def _store(self, at: list[Any], v: Any, total: Any) -> Any:
        nest = self.contraction.nest
        if self.partial is not None:
            partial, part = self.partial
            return store(partial, total, part, _flat(nest, at) + v)
        (value,) = nest.values
        *outer, last = (substituted(index, nest.axes, at) for index in value.indices)
        return store(value.buffer, total, *outer, last + v)
