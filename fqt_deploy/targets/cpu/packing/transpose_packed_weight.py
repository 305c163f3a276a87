"""A packed weight transposed: each word is compared with sixteen lane masks, one for each of sixteen input channels."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from tvm import te, tirx

from fqt_deploy.ops.lib.packed_words import PANEL, WORD, word_count
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.packing.bit_transposition import collect_lanes, lane_bit
from fqt_deploy.targets.cpu.register_tile import new_schedule, placeholders
from fqt_deploy.targets.kernel_arguments import arguments_of


class TransposePackedWeightRule:
    """Takes ``transpose_packed_weight`` of whole words and panels."""

    ops: ClassVar[frozenset[str]] = frozenset({"transpose_packed_weight"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """Lanes are input channels, the bits of a word output channels."""
        arguments = arguments_of(function)
        if arguments is None:
            return None
        in_channels, out_channels = arguments["in_channels"], arguments["out_channels"]
        if in_channels % PANEL or out_channels % WORD:
            return None
        (w,) = placeholders(function)
        shape = [int(d) for d in function.params[-1].shape]
        words_in, words_out = word_count(in_channels), out_channels // WORD
        k = te.reduce_axis((0, WORD), "k")

        def bit(panel: Any, tap_word: Any, lane: Any) -> Any:
            o = tap_word % words_out * WORD + k
            word = w[o // PANEL, tap_word // words_out * words_in + panel * PANEL // WORD, o % PANEL]
            return te.sum(lane_bit(word, (panel * PANEL + lane) % WORD, k), axis=k)

        collected = te.compute(shape, bit, name="collected")
        result = te.compute(shape, lambda *i: tirx.reinterpret("int32", collected[i]), name="result")
        schedule = new_schedule([w, result])
        collect_lanes(schedule, schedule.get_sblock("collected"), schedule.get_sblock("result"), math.prod(shape))
        return schedule.mod["main"]
