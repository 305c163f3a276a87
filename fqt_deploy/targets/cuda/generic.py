"""Thread mappings that fit any stage: a thread for each element, or a group of threads for each sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir.expr import TensorLoad

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
    when,
    with_buffers,
)
from fqt_deploy.targets.cuda.loop_nest import (
    Axis,
    KernelFormulas,
    LoopNest,
    Value,
    loads_of,
    substituted,
    unflattened,
)

THREADS = 256
"""Number of threads of a block: eight warps, enough blocks of which fit a multiprocessor whatever they need."""
CHUNK_TERMS = 64
"""A sum is split over several blocks only if each thread keeps at least this many terms."""


def emit(formulas: KernelFormulas) -> Any:
    """The whole kernel: a launch for each stage, or for each run of stages that work element by element."""
    statements: list[Any] = []
    stored = list(formulas.intermediates)
    groups = _groups(formulas.nests)
    for i, group in enumerate(groups):
        if group[0].reduced:
            statements.append(reduction(group[0]))
            continue
        others = [nest for j, other in enumerate(groups) if j != i for nest in other]
        own = [v.buffer for nest in group for v in nest.values if not any(_reads(other, v.buffer) for other in others)]
        private = [buffer for buffer in formulas.intermediates if any(buffer.same_as(b) for b in own)]
        stored = [buffer for buffer in stored if not any(buffer.same_as(b) for b in private)]
        statements.append(elementwise(group, private))
    return with_buffers(stored, sequence(*statements))


def elementwise(nests: Sequence[LoopNest], private: Sequence[tirx.Buffer] = ()) -> Any:
    """A launch with one thread an element; stages over the same axes follow each other in one thread.

    Args:
        nests: the stages.
        private: results that only these stages read: registers of the thread.
    """
    size = nests[0].size
    threads = min(THREADS, max(32, size))
    registers = [local((1,), str(buffer.dtype), buffer.name) for buffer in private]

    def read(load: Any) -> Any:
        found = [r for r, b in zip(registers, private, strict=True) if load.source.same_as(b)]
        return found[0][0] if found else load

    def stage(nest: LoopNest, positions: list[Any]) -> Any:
        """All values before the first store: a store may overwrite what another value reads."""
        values = [tvm_ffi.structural_map(v.expression, (TensorLoad, read)) for v in nest.values]
        values = [substituted(value, nest.axes, positions) for value in values]
        results = [local((1,), str(v.buffer.dtype), "result") for v in nest.values]
        targets = [
            next((r for r, b in zip(registers, private, strict=True) if v.buffer.same_as(b)), None) for v in nest.values
        ]
        if len(values) == 1:
            return _write(nest, nest.values[0], targets[0], values[0], positions)
        compute = [store(result, value, 0) for result, value in zip(results, values, strict=True)]
        writes = [
            _write(nest, v, target, result[0], positions)
            for v, target, result in zip(nest.values, targets, results, strict=True)
        ]
        return with_buffers(results, sequence(*compute, *writes))

    def body(block: Any, thread: Any) -> Any:
        flat = block * threads + thread
        work = sequence(*(stage(nest, unflattened(flat, nest.axes)) for nest in nests))
        return when(True if size % threads == 0 else flat < size, with_buffers(registers, work))

    return launch(ceil_div(size, threads), threads, body)


def _write(nest: LoopNest, value: Value, register: tirx.Buffer | None, result: Any, positions: list[Any]) -> Any:
    if register is not None:
        return store(register, result, 0)
    return store(value.buffer, result, *(substituted(i, nest.axes, positions) for i in value.indices))


def _reads(nest: LoopNest, buffer: tirx.Buffer) -> bool:
    return any(load.source.same_as(buffer) for value in nest.values for load in loads_of(value.expression))


def reduction(nest: LoopNest) -> Any:
    """Partial results of ``lanes`` threads an element, combined in a fixed order, in two launches if elements are few.

    Partial results belong to indices: nothing depends on the device, or on what runs first.
    """
    contiguous = _reduces_contiguous_axis(nest)
    lanes = _lanes(nest, contiguous)
    columns = THREADS // lanes
    blocks = ceil_div(nest.size, columns)
    wanted = ceil_div(4 * REFERENCE_PROCESSORS, blocks)
    chunks = max(1, min(wanted, nest.terms // (lanes * CHUNK_TERMS)))
    if chunks == 1:
        return _reduce(nest, lanes, contiguous)
    axis = Axis(tirx.Var("chunk", "int32"), chunks)
    partial = [scratch((chunks, nest.size), str(v.buffer.dtype), f"partial{i}") for i, v in enumerate(nest.values)]
    return with_buffers(
        partial, sequence(_reduce(nest, lanes, contiguous, chunks, partial), _combine(nest, axis, partial))
    )


def _combine(nest: LoopNest, chunk: Axis, partial: Sequence[tirx.Buffer]) -> Any:
    """The sum of the partial results of every element, in their order."""
    threads = min(THREADS, max(32, nest.size))

    def body(block: Any, thread: Any) -> Any:
        flat = block * threads + thread
        totals = [local((1,), str(v.buffer.dtype), f"total{i}") for i, v in enumerate(nest.values)]
        start = [store(t, v.initial, 0) for t, v in zip(totals, nest.values, strict=True)]
        work = loop(
            chunk.extent,
            lambda c: sequence(
                *(
                    store(t, v.combined(t[0], p[c, flat]), 0)
                    for t, v, p in zip(totals, nest.values, partial, strict=True)
                )
            ),
        )
        positions = unflattened(flat, nest.axes)
        finish = [
            store(v.buffer, t[0], *(substituted(i, nest.axes, positions) for i in v.indices))
            for t, v in zip(totals, nest.values, strict=True)
        ]
        return when(flat < nest.size, with_buffers(totals, sequence(*start, work, *finish)))

    return launch(ceil_div(nest.size, threads), threads, body)


def _reduce(
    nest: LoopNest, lanes: int, contiguous: bool, chunks: int = 1, partial: Sequence[tirx.Buffer] | None = None
) -> Any:
    """The statements of a sum: ``lanes`` threads share the terms of one element, or of one chunk of its terms."""
    columns = THREADS // lanes
    terms = ceil_div(nest.terms, chunks)

    def body(block: Any, thread: Any) -> Any:
        chunk, tile = (integer(0), block) if chunks == 1 else (block % chunks, block // chunks)
        lane, column = (thread % lanes, thread // lanes) if contiguous else (thread // columns, thread % columns)
        flat = tile * columns + column
        positions = unflattened(flat, nest.axes)
        totals = [local((1,), str(v.buffer.dtype), f"total{i}") for i, v in enumerate(nest.values)]
        tables = [shared((THREADS,), str(v.buffer.dtype), f"table{i}") for i, v in enumerate(nest.values)]

        def accumulate(step: Any) -> Any:
            inner = step * lanes + lane
            term = chunk * terms + inner
            at = unflattened(term, nest.reduced)
            updates = [
                store(t, v.combined(t[0], substituted(v.expression, (*nest.axes, *nest.reduced), [*positions, *at])), 0)
                for t, v in zip(totals, nest.values, strict=True)
            ]
            whole = terms % lanes == 0 and chunks * terms == nest.terms
            return when(True if whole else tirx.all(inner < terms, term < nest.terms), sequence(*updates))

        def write() -> list[Any]:
            if partial is not None:
                return [store(p, t[0], chunk, flat) for p, t in zip(partial, totals, strict=True)]
            return [
                store(v.buffer, t[0], *(substituted(i, nest.axes, positions) for i in v.indices))
                for v, t in zip(nest.values, totals, strict=True)
            ]

        start = [store(t, v.initial, 0) for t, v in zip(totals, nest.values, strict=True)]
        guard = True if nest.size % columns == 0 else flat < nest.size
        work = when(guard, loop(ceil_div(terms, lanes), accumulate))
        if lanes == 1:
            return with_buffers(totals, sequence(*start, work, when(guard, sequence(*write()))))
        exchange = [store(s, t[0], thread) for s, t in zip(tables, totals, strict=True)]
        step = 1 if contiguous else columns

        def fold(level: int) -> Any:
            half = lanes >> (level + 1)
            pairs = [
                sequence(
                    store(t, v.combined(t[0], s[thread + half * step]), 0),
                    store(s, t[0], thread),
                )
                for v, s, t in zip(nest.values, tables, totals, strict=True)
            ]
            return sequence(when(lane < half, sequence(*pairs)), barrier())

        tree = unrolled(int(math.log2(lanes)), fold)
        finish = when(lane.equal(0) if guard is True else tirx.all(lane.equal(0), guard), sequence(*write()))
        return with_buffers([*totals, *tables], sequence(*start, work, *exchange, barrier(), tree, finish))

    return launch(ceil_div(nest.size, columns) * chunks, THREADS, body)


def _lanes(nest: LoopNest, contiguous: bool) -> int:
    """Threads that share one element's terms: a power of two.

    Neighbouring threads must read neighbouring addresses. So a contiguous reduction takes at least a warp, any other
    leaves at least a warp of columns.
    """
    wanted = 1 << max(0, math.ceil(math.log2(max(1, nest.terms))))
    if contiguous:
        return min(THREADS, wanted)
    few = max(1, THREADS // max(1, 1 << math.ceil(math.log2(nest.size))))
    return min(wanted, max(few, THREADS // 64)) if nest.terms >= 8 else 1


def _groups(nests: Sequence[LoopNest]) -> list[list[LoopNest]]:
    """Runs of stages of one launch: over the same axes, each reading only its own element of the others."""
    groups: list[list[LoopNest]] = []
    for nest in nests:
        if groups and _joins(nest, groups[-1]):
            groups[-1].append(nest)
        else:
            groups.append([nest])
    return groups


def _joins(nest: LoopNest, group: list[LoopNest]) -> bool:
    extents = [axis.extent for axis in nest.axes]
    if nest.reduced or group[0].reduced or extents != [axis.extent for axis in group[0].axes]:
        return False
    written = [value.buffer for other in group for value in other.values]
    own = [axis.var for axis in nest.axes]
    for value in nest.values:
        for load in loads_of(value.expression):
            if not any(load.source.same_as(buffer) for buffer in written):
                continue
            if not all(index.same_as(var) for index, var in zip(load.indices, own, strict=True)):
                return False
    return True


def _reduces_contiguous_axis(nest: LoopNest) -> bool:
    """Whether the last index of the largest operand moves with the last reduced axis."""
    loads = [load for value in nest.values for load in loads_of(value.expression) if len(load.indices)]
    if not loads:
        return False
    largest = max(loads, key=lambda load: math.prod(int(d) for d in load.source.shape))
    last = largest.indices[-1]
    spatial = [axis.var for axis in nest.axes if axis.extent > 1]
    found = _variables(last)
    return not any(var.same_as(own) for var in found for own in spatial)


def _variables(expression: Any) -> list[Any]:
    found: list[Any] = []
    tvm_ffi.structural_walk(expression, (tirx.Var, lambda var: found.append(var)))
    return found
