"""Weight-gradient product by popcount: a matrix product of bit rows, an accumulator for each channel and plane."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import te, tirx

from fqt_deploy.ops.lib.packed_words import PANEL, popcount
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.form import POPCOUNT
from fqt_deploy.targets.cpu.register_tile import largest_divisor, new_schedule, schedule_helpers
from fqt_deploy.targets.products import BitWeightGradient
from fqt_deploy.targets.tuning_log import Tile


class PopcountWeightGradient:
    """A panel of sixteen rows is read once for a tile of channels and all their planes."""

    name: ClassVar[str] = POPCOUNT

    def accepts(self, product: BitWeightGradient, features: CpuFeatures) -> bool:
        """Whether the form can compute the product: it computes any, on any processor."""
        return True

    def tiles(self, product: BitWeightGradient, features: CpuFeatures) -> tuple[Tile, ...]:
        """Kept channels, as many as there are accumulators for all planes."""
        return ((largest_divisor(product.kept, max(1, features.accumulators // product.bits)),),)

    def kernel(self, product: BitWeightGradient, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """Counts of shared bits; then each tap's planes, weighed and added, less its mask where levels have signs."""
        p = product
        planes = te.placeholder((p.words, p.bits, p.kept), "int32", name="operand0")
        positions = te.placeholder((p.panels, p.words, PANEL), "int32", name="operand1")
        word = te.reduce_axis((0, p.words), "word")
        total = te.compute(
            (p.panels, p.kept, p.bits, PANEL),
            lambda r, c, plane, lane: te.sum(popcount(planes[word, plane, c] & positions[r, word, lane]), axis=word),
            name="total",
        )

        def weighted(r: Any, c: Any, lane: Any) -> Any:
            value: Any = total[r, c, 0, lane]
            for plane in range(1, p.bits):
                value = value + (total[r, c, plane, lane] << plane)
            return value

        counts = te.compute((p.panels, p.kept, PANEL), weighted, name="counts")

        def at(row: Any, c: Any) -> Any:
            return counts[row // PANEL, c, row % PANEL]

        def level(c: Any, i: Any, kh: Any, kw: Any) -> Any:
            tap = kh * p.kernel[1] + kw
            found: Any = at(tap * p.channels + i, c)
            for plane in range(1, p.planes):
                found = found + (at(tap * p.channels + plane * p.plane_channels + i, c) << plane)
            return p.level(found, at(p.taps * p.channels + tap, c))

        result = te.compute((p.kept, p.results, *p.kernel), level, name="result")
        schedule = new_schedule([planes, positions, result])
        _schedule_counts(schedule, largest_divisor(p.kept, tile[0]))
        schedule_helpers(schedule, ("result",))
        return schedule.mod["main"]


def _schedule_counts(schedule: Any, rows: int) -> None:
    """Accumulate ``total`` in registers for a panel and ``rows`` channels of ``counts``."""
    accumulate, combine = schedule.get_sblock("total"), schedule.get_sblock("counts")
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
