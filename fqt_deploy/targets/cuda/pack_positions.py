"""Packing along positions: a warp transposes 32 positions times 32 channels of bits by 32 ballots."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx

from fqt_deploy.ops.lib.packed_words import PANEL, WORD
from fqt_deploy.targets.cuda.features import CudaFeatures
from fqt_deploy.targets.cuda.kernel_builder import (
    WARP,
    as_int32,
    ballot,
    ceil_div,
    integer,
    launch,
    local,
    sequence,
    store,
    unrolled,
    when,
    with_buffers,
)
from fqt_deploy.targets.kernel_arguments import arguments_of
from fqt_deploy.targets.products import convolution_of

THREADS = 256


class PackPositionsRule:
    """Schedules every ``pack_positions``."""

    ops: ClassVar[frozenset[str]] = frozenset({"pack_positions"})

    def apply(self, function: tirx.PrimFunc, features: CudaFeatures) -> tirx.PrimFunc | None:
        """Returns a launch for rows of channels, and a small one for validity rows and what fills the last panel."""
        image, result = function.params
        arguments, layer = arguments_of(function), convolution_of(function, image=image)
        if arguments is None or layer is None:
            return None
        channels, channel_words = arguments["in_channels"], int(image.shape[3])
        panels, words, _ = (int(d) for d in result.shape)
        taps, places = layer.taps, layer.output[0] * layer.output[1]

        def look(word: Any, lane: Any, tap: Any) -> tuple[Any, list[Any]]:
            """Whether the lane's position has an image position under the tap, and which."""
            position = word * WORD + lane
            place = position % places
            at = place // layer.output[1], place % layer.output[1]
            inside, y, x = layer.input_position(at, layer.tap(tap))
            return tirx.all(position < layer.positions, inside), [position // places, y, x]

        def values(block: Any, thread: Any) -> Any:
            flat, lane = block * (THREADS // WARP) + thread // WARP, thread % WARP
            word, task = flat % words, flat // words
            channel_word, tap = task % channel_words, task // channel_words
            exists, at = look(word, lane, tap)
            bits, column = local((1,), "int32", "bits"), local((1,), "int32", "column")
            row = tap * channels + channel_word * WORD + lane
            collect = unrolled(
                WORD,
                lambda j: store(column, tirx.Select(lane.equal(j), as_int32(ballot((bits[0] >> j) & 1)), column[0]), 0),
            )
            write = store(result, column[0], row // PANEL, word, row % PANEL)
            steps = sequence(
                store(bits, integer(0), 0),
                when(exists, store(bits, image[(*at, channel_word)], 0)),
                store(column, integer(0), 0),
                collect,
                when(True if channels % WORD == 0 else channel_word * WORD + lane < channels, write),
            )
            return when(flat < taps * channel_words * words, with_buffers([bits, column], steps))

        def rest(block: Any, thread: Any) -> Any:
            flat, lane = block * (THREADS // WARP) + thread // WARP, thread % WARP
            word, tap = flat % words, flat // words
            exists, _ = look(word, lane, tap)
            row = taps * channels + tap
            mask = local((1,), "int32", "mask")
            steps = sequence(
                store(mask, as_int32(ballot(tirx.all(tap < taps, exists))), 0),
                when(lane.equal(0), store(result, mask[0], row // PANEL, word, row % PANEL)),
            )
            return when(flat < tail * words, with_buffers([mask], steps))

        tail = panels * PANEL - taps * channels
        warps = THREADS // WARP
        return function.with_body(
            sequence(
                launch(ceil_div(taps * channel_words * words, warps), THREADS, values),
                launch(ceil_div(tail * words, warps), THREADS, rest),
            )
        )
