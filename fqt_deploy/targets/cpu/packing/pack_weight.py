"""Weights packed in memory order first, 32 comparisons at a time; then the bits are put in the order of the product."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from tvm import te, tirx

from fqt_deploy.ops.lib.packed_words import PANEL, WORD
from fqt_deploy.ops.packing.pack_weight_plane import plane_bit
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.packing.bit_transposition import collect_lanes, lane_bit
from fqt_deploy.targets.cpu.packing.pack_channels import collect_bits, has_move_mask
from fqt_deploy.targets.cpu.register_tile import new_schedule, placeholders
from fqt_deploy.targets.kernel_arguments import arguments_of


class PackWeightRule:
    """Takes ``pack_weight``, and planes of weights of several bits, of whole words and panels."""

    ops: ClassVar[frozenset[str]] = frozenset({"pack_weight", "pack_weight_plane"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """Lanes are output channels in both steps; nothing may have been inlined."""
        arguments = arguments_of(function)
        if arguments is None or not has_move_mask(features):
            return None
        w, *reciprocals = placeholders(function)
        out_channels, in_channels, *kernel = (int(d) for d in w.shape)
        if out_channels % PANEL or in_channels % WORD:
            return None
        taps = kernel[0] * kernel[1]
        words, total = in_channels // WORD, in_channels * taps

        def positive(o: Any, j: Any) -> Any:
            at = (j // taps, j % taps // kernel[1], j % kernel[1])
            if reciprocals:
                bit = plane_bit(w[(o, *at)], reciprocals[0][o], arguments["bits"], arguments["plane"])
                return bit.astype("uint8")
            return (w[(o, *at)] > tirx.const(0.0, "float32")).astype("uint8")

        signs = te.compute((out_channels, total), positive, name="signs")
        k = te.reduce_axis((0, WORD), "k")
        flat = te.compute(
            (out_channels // PANEL, total // WORD, PANEL),
            lambda p, j, lane: te.sum(signs[p * PANEL + lane, j * WORD + k].astype("int32") << k, axis=k),
            name="flat",
        )

        if taps == 1:
            return _scheduled([w, *reciprocals], flat)

        def bit(panel: Any, tap_word: Any, lane: Any) -> Any:
            j = (tap_word % words * WORD + k) * taps + tap_word // words
            return te.sum(lane_bit(flat[panel, j // WORD, lane], j % WORD, k), axis=k)

        shape = (out_channels // PANEL, taps * words, PANEL)
        collected = te.compute(shape, bit, name="collected")
        result = te.compute(shape, lambda *i: tirx.reinterpret("int32", collected[i]), name="result")
        return _scheduled([w, *reciprocals], flat, result)


def _scheduled(operands: list[Any], flat: Any, result: Any = None) -> tirx.PrimFunc:
    """The kernel that gathers the bits of ``result`` from those of ``flat``, which with one tap is the result."""
    schedule = new_schedule([*operands, flat if result is None else result])
    block = schedule.get_sblock("flat")
    panel, word, lane, _ = schedule.get_loops(block)
    schedule.reorder(panel, lane, word)
    compare = schedule.get_sblock("signs")
    schedule.compute_at(compare, word)
    schedule.vectorize(schedule.get_loops(compare)[-1])
    schedule.parallel(schedule.fuse(panel, lane))
    if result is not None:
        elements = math.prod(int(d) for d in result.shape)
        collect_lanes(schedule, schedule.get_sblock("collected"), schedule.get_sblock("result"), elements)
    return collect_bits(schedule.mod["main"], "flat", has_planes=False)
