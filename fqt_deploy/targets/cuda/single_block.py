"""Selections: a chain of small stages, each needing all of the one before; one block runs them all."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from tvm import tirx

from fqt_deploy.targets.cuda.features import CudaFeatures
from fqt_deploy.targets.cuda.kernel_builder import (
    WARP,
    barrier,
    ceil_div,
    launch,
    local,
    loop,
    sequence,
    shuffle_xor,
    store,
    unrolled,
    when,
    with_buffers,
)
from fqt_deploy.targets.cuda.loop_nest import LoopNest, formulas_of, substituted, unflattened

THREADS = 512
"""Number of threads of the block, sixteen warps: with more, the int64 arithmetic of a thread would not fit its
registers.
"""


class SingleBlockRule:
    """Schedules ``select_sampled`` and ``select_topk``: fifteen launches become one.

    Sums there are of integers, so that lanes may add in any order.
    """

    ops: ClassVar[frozenset[str]] = frozenset({"select_sampled", "select_topk"})

    def apply(self, function: tirx.PrimFunc, features: CudaFeatures) -> tirx.PrimFunc | None:
        """A barrier after every stage; a warp for every sum."""
        formulas = formulas_of(function)

        def body(_: Any, thread: Any) -> Any:
            stages = [(_sums if nest.reduced else _elements)(nest, thread) for nest in formulas.nests]
            return sequence(*(sequence(stage, barrier()) for stage in stages))

        return function.with_body(with_buffers(formulas.intermediates, launch(1, THREADS, body)))


def _elements(nest: LoopNest, thread: Any) -> Any:
    def element(step: Any) -> Any:
        flat = step * THREADS + thread
        positions = unflattened(flat, nest.axes)
        stores = [
            store(
                v.buffer,
                substituted(v.expression, nest.axes, positions),
                *(substituted(i, nest.axes, positions) for i in v.indices),
            )
            for v in nest.values
        ]
        return when(True if nest.size % THREADS == 0 else flat < nest.size, sequence(*stores))

    return loop(ceil_div(nest.size, THREADS), element)


def _sums(nest: LoopNest, thread: Any) -> Any:
    warps = THREADS // WARP
    warp, lane = thread // WARP, thread % WARP
    (value,) = nest.values
    total = local((1,), str(value.buffer.dtype), "total")

    def element(step: Any) -> Any:
        flat = step * warps + warp
        positions = unflattened(flat, nest.axes)

        def accumulate(inner: Any) -> Any:
            term = inner * WARP + lane
            at = unflattened(term, nest.reduced)
            expression = substituted(value.expression, (*nest.axes, *nest.reduced), [*positions, *at])
            update = store(total, value.combined(total[0], expression), 0)
            return when(True if nest.terms % WARP == 0 else term < nest.terms, update)

        def fold(level: int) -> Any:
            return store(total, value.combined(total[0], shuffle_xor(total[0], WARP >> (level + 1))), 0)

        work = sequence(
            store(total, value.initial, 0),
            loop(ceil_div(nest.terms, WARP), accumulate),
            unrolled(int(math.log2(WARP)), fold),
            when(
                lane.equal(0),
                store(value.buffer, total[0], *(substituted(i, nest.axes, positions) for i in value.indices)),
            ),
        )
        return when(True if nest.size % warps == 0 else flat < nest.size, work)

    return with_buffers([total], loop(ceil_div(nest.size, warps), element))
