"""Packing along the contiguous axis: each lane of a warp computes one bit, a ballot collects the word."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx
from tvm.ir.prim.expr import LShift

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
"""Words that one warp packs: four independent reads are in flight."""


class BallotPackingRule:
    """Takes ``pack_signs`` and ``quantize_pack_samples``: elements that neighbouring lanes read lie side by side."""

    ops: ClassVar[frozenset[str]] = frozenset({"pack_signs", "quantize_pack_samples"})

    def apply(self, function: tirx.PrimFunc, features: CudaFeatures) -> tirx.PrimFunc | None:
        """The element is computed once, in a register, for all of its planes."""
        elements, words = formulas_of(function).nests
        planes = int(words.axes[-2].extent) if str(function.attrs["fqt.op"]) == "quantize_pack_samples" else 1
        kept = [axis for i, axis in enumerate(words.axes) if planes == 1 or i != len(words.axes) - 2]
        count = words.size // planes
        warps = THREADS // WARP

        def body(block: Any, thread: Any) -> Any:
            first = (block * warps + thread // WARP) * WORDS_PER_WARP
            return unrolled(WORDS_PER_WARP, lambda i: _word(elements, words, kept, planes, count, first + i, thread))

        return function.with_body(launch(ceil_div(count, warps * WORDS_PER_WARP), THREADS, body))


def _word(
    elements: LoopNest, words: LoopNest, kept: list[Axis], planes: int, count: int, flat: Any, thread: Any
) -> Any:
    """The planes of one word, from one element in each lane."""
    lane = thread % WARP
    element = local((1,), str(elements.values[0].buffer.dtype), "element")
    (bit,) = words.values
    (k,) = words.reduced
    positions = unflattened(flat, tuple(kept))

    def at(plane: int) -> tuple[tuple[Axis, ...], list[Any]]:
        own = positions if planes == 1 else [*positions[:-1], plane, positions[-1]]
        return (*words.axes, k), [*own, lane]

    evaluate = element_at(elements, substituted(bit.expression, *at(0)), element)

    def plane(p: int) -> Any:
        shifted = substituted(bit.expression, *at(p))
        assert isinstance(shifted, LShift), "a word is a sum of shifted bits"
        own = inlined(shifted.a, elements, at=lambda _: element[0])
        word = as_int32(ballot(own))
        axes, where = at(p)
        indices = [substituted(index, axes, where) for index in bit.indices]
        result = local((1,), "int32", "word")
        return with_buffers([result], sequence(store(result, word, 0), when(lane.equal(0), store(bit.buffer, result[0], *indices))))

    work = with_buffers([element], sequence(evaluate, unrolled(planes, plane)))
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


