"""Weight-gradient product: a matrix product of bit rows, one accumulator for each channel and plane of the tile."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import te, tirx

from fqt_deploy.ops.lib.packed_words import PANEL, popcount
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.register_tile import (
    arguments_of,
    largest_divisor,
    new_schedule,
    placeholders,
    schedule_helpers,
)


class BitplaneWeightGradRule:
    """Takes every ``bitplane_weight_grad``."""

    ops: ClassVar[frozenset[str]] = frozenset({"bitplane_weight_grad"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """A panel of sixteen rows is read once for a tile of channels and all their planes."""
        arguments = arguments_of(function)
        if arguments is None:
            return None
        _, _, channels, kernel = arguments
        taps = kernel[0] * kernel[1]
        planes, positions = placeholders(function)
        words, bits, kept = (int(d) for d in planes.shape)
        panels = int(positions.shape[0])
        word = te.reduce_axis((0, words), "word")
        total = te.compute(
            (panels, kept, bits, PANEL),
            lambda r, c, p, lane: te.sum(popcount(planes[word, p, c] & positions[r, word, lane]), axis=word),
            name="total",
        )

        def weighted(r: Any, c: Any, lane: Any) -> Any:
            value: Any = total[r, c, 0, lane]
            for p in range(1, bits):
                value = value + (total[r, c, p, lane] << p)
            return value

        counts = te.compute((panels, kept, PANEL), weighted, name="counts")

        def at(row: Any, c: Any) -> Any:
            return counts[row // PANEL, c, row % PANEL]

        def signed(c: Any, i: Any, kh: Any, kw: Any) -> Any:
            tap = kh * kernel[1] + kw
            return 2 * at(tap * channels + i, c) - at(taps * channels + tap, c)

        result = te.compute((kept, channels, *kernel), signed, name="result")
        schedule = new_schedule([planes, positions, result])
        accumulate, combine = schedule.get_sblock("total"), schedule.get_sblock("counts")
        rows = largest_divisor(kept, max(1, features.accumulators // bits))
        panel, channel, lane = schedule.get_loops(combine)
        tile, row = schedule.split(channel, [None, rows])
        schedule.compute_at(accumulate, tile, preserve_unit_loops=True)
        *_, row_loop, plane_loop, lanes, reduction = schedule.get_loops(accumulate)
        schedule.reorder(reduction, row_loop, plane_loop, lanes)
        schedule.vectorize(lanes)
        schedule.unroll(row_loop)
        schedule.unroll(plane_loop)
        schedule.vectorize(lane)
        schedule.unroll(row)
        schedule.parallel(panel)
        schedule.decompose_reduction(accumulate, reduction)
        schedule_helpers(schedule, ("result",))
        return schedule.mod["main"]
