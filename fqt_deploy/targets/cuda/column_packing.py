"""Packing across the contiguous axis: a thread collects the 32 elements of its words, neighbours read side by side."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx

from fqt_deploy.ops.lib.packed_words import PANEL, WORD
from fqt_deploy.targets.cuda.ballot_packing import element_at
from fqt_deploy.targets.cuda.features import CudaFeatures
from fqt_deploy.targets.cuda.kernel_builder import (
    ceil_div,
    integer,
    launch,
    local,
    loop,
    sequence,
    store,
    unrolled,
    when,
    with_buffers,
)
from fqt_deploy.targets.cuda.loop_nest import LoopNest, formulas_of, inlined, substituted

THREADS = 256


class ColumnPackingRule:
    """Schedules ``quantize_pack_channels``: a thread owns one channel of 32 positions, all planes."""

    ops: ClassVar[frozenset[str]] = frozenset({"quantize_pack_channels"})

    def apply(self, function: tirx.PrimFunc, features: CudaFeatures) -> tirx.PrimFunc | None:
        """Returns one launch, in which codes are computed once and never written."""
        elements, words = formulas_of(function).nests
        count, planes, kept = (axis.extent for axis in words.axes)

        def body(block: Any, thread: Any) -> Any:
            flat = block * THREADS + thread
            work = _collect(elements, words, planes, [flat // kept, flat % kept])
            return when(True if count * kept % THREADS == 0 else flat < count * kept, work)

        return function.with_body(launch(ceil_div(count * kept, THREADS), THREADS, body))


def _collect(elements: LoopNest, words: LoopNest, planes: int, position: list[Any]) -> Any:
    code = local((1,), str(elements.values[0].buffer.dtype), "code")
    result = local((planes,), "int32", "words")
    (bit,) = words.values
    axes = (*words.axes, *words.reduced)
    word, channel = position

    def step(k: Any) -> Any:
        def plane(p: int) -> Any:
            term = substituted(bit.expression, axes, [word, p, channel, k])
            return store(result, result[p] + inlined(term, elements, at=lambda _: code[0]), p)

        term = substituted(bit.expression, axes, [word, 0, channel, k])
        return sequence(element_at(elements, term, code), unrolled(planes, plane))

    start = unrolled(planes, lambda p: store(result, integer(0), p))
    write = unrolled(
        planes,
        lambda p: store(bit.buffer, result[p], *(substituted(i, words.axes, [word, p, channel]) for i in bit.indices)),
    )
    return with_buffers([code, result], sequence(start, loop(WORD, step), write))


class WeightPackingRule:
    """Schedules ``pack_weight``: a thread owns 32 channels of one row and tap.

    Rows of taps are contiguous, so threads go along taps first, and then along the rows.
    """

    ops: ClassVar[frozenset[str]] = frozenset({"pack_weight"})

    def apply(self, function: tirx.PrimFunc, features: CudaFeatures) -> tirx.PrimFunc | None:
        """A sum of 32 shifted bits in one thread."""
        (nest,) = formulas_of(function).nests
        weight = function.params[0]
        _, channels, kernel_h, kernel_w = (int(d) for d in weight.shape)
        taps, words = kernel_h * kernel_w, ceil_div(channels, WORD)
        panels = nest.axes[0].extent
        count = words * panels * PANEL * taps
        (bit,) = nest.values
        total = local((1,), "int32", "total")

        def body(block: Any, thread: Any) -> Any:
            flat = block * THREADS + thread
            tap, row, word = flat % taps, flat // taps % (panels * PANEL), flat // (taps * panels * PANEL)
            position = [row // PANEL, tap * words + word, row % PANEL]

            def step(k: Any) -> Any:
                term = substituted(bit.expression, (*nest.axes, *nest.reduced), [*position, k])
                return store(total, total[0] + term, 0)

            indices = [substituted(index, nest.axes, position) for index in bit.indices]
            work = sequence(store(total, integer(0), 0), loop(WORD, step), store(bit.buffer, total[0], *indices))
            return when(True if count % THREADS == 0 else flat < count, with_buffers([total], work))

        return function.with_body(launch(ceil_div(count, THREADS), THREADS, body))
