"""Packing along the contiguous axis: each lane of a warp computes one bit, a ballot collects the word."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx
from tvm.ir.prim.expr import LShift

from fqt_deploy.ops.lib.packed_words import IN_PLANES
from fqt_deploy.targets.cuda.features import CudaFeatures
from fqt_deploy.targets.cuda.kernel_builder import (
    WARP,
    as_int32,
    ballot,
    ceil_div,
    launch,
    local,
    sequence,
    store,
    unrolled,
    when,
    with_buffers,
)
from fqt_deploy.targets.cuda.loop_nest import (
    Axis,
    LoopNest,
    formulas_of,
    inlined,
    loads_of,
    substituted,
    unflattened,
)

THREADS = 256
WORDS_PER_WARP = 4
"""Number of words that one warp packs: four independent reads are in flight."""


class BallotPackingRule:
    """Takes packings whose 32 elements of a word lie side by side, and the transposition of packed weights."""

    ops: ClassVar[frozenset[str]] = IN_PLANES | {"pack_signs", "transpose_packed_weight"}

    def apply(self, function: tirx.PrimFunc, features: CudaFeatures) -> tirx.PrimFunc | None:
        """The element is computed once, in a register, for all of its planes."""
        *stages, words = formulas_of(function).nests
        elements = stages[0] if stages else None
        planes = int(words.axes[-2].extent) if str(function.attrs["fqt.op"]) in IN_PLANES else 1
        kept = [axis for i, axis in enumerate(words.axes) if planes == 1 or i != len(words.axes) - 2]
        count = words.size // planes
        warps = THREADS // WARP

        def body(block: Any, thread: Any) -> Any:
            first = (block * warps + thread // WARP) * WORDS_PER_WARP
            return unrolled(WORDS_PER_WARP, lambda i: _word(elements, words, kept, planes, count, first + i, thread))

        return function.with_body(launch(ceil_div(count, warps * WORDS_PER_WARP), THREADS, body))


def _word(
    elements: LoopNest | None, words: LoopNest, kept: list[Axis], planes: int, count: int, flat: Any, thread: Any
) -> Any:
    """The planes of one word, from one element in each lane."""
    lane = thread % WARP
    (bit,) = words.values
    axes = (*words.axes, *words.reduced)
    positions = unflattened(flat, tuple(kept))
    register = None if elements is None else local((1,), str(elements.values[0].buffer.dtype), "element")

    def at(plane: int) -> list[Any]:
        return [*(positions if planes == 1 else [*positions[:-1], plane, positions[-1]]), lane]

    def plane(p: int) -> Any:
        shifted = substituted(bit.expression, axes, at(p))
        assert isinstance(shifted, LShift), "a word is a sum of shifted bits"
        own = shifted.a
        if elements is not None and register is not None:
            own = inlined(own, elements, at=lambda _: register[0])
        result = local((1,), "int32", "word")
        indices = [substituted(index, axes, at(p)) for index in bit.indices]
        write = when(lane.equal(0), store(bit.buffer, result[0], *indices))
        return with_buffers([result], sequence(store(result, as_int32(ballot(own)), 0), write))

    work = unrolled(planes, plane)
    if elements is not None and register is not None:
        evaluate = element_at(elements, substituted(bit.expression, axes, at(0)), register)
        work = with_buffers([register], sequence(evaluate, work))
    whole = count % (THREADS // WARP * WORDS_PER_WARP) == 0
    return when(True if whole else flat < count, work)


def element_at(elements: LoopNest, term: Any, register: tirx.Buffer) -> Any:
    """Put the element that ``term`` reads into ``register``; 0 where there is none.

    ``term`` may read past the last element in a branch that is not taken; a thread computes before it branches.
    """
    (element,) = elements.values
    buffer = element.buffer
    indices = next(list(load.indices) for load in loads_of(term) if load.source.same_as(buffer))
    value = substituted(element.expression, elements.axes, indices)
    inside = [index < axis.extent for index, axis in zip(indices, elements.axes, strict=True)]
    zero = tirx.const(0, str(buffer.dtype))
    return sequence(store(register, zero, 0), when(tirx.all(*inside), store(register, value, 0)))
