"""Sign bits repacked along positions: one bit transposition of the image, then each tap is a shifted copy of it.

In a convolution with stride 1 whose output has the size of its input, tap ``t`` of position ``p`` is element ``p +
d(t)`` of the row-major image, or padding. So its row of bits is the channel's row, moved by ``d(t)`` bits and masked by
where the tap is inside. Other convolutions gather the bits of every tap.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from tvm import te, tirx

from fqt_deploy.ops.lib.counter_random import uint32
from fqt_deploy.ops.lib.packed_words import PANEL, WORD, panel_count
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.generic.elementwise import schedule_spatial
from fqt_deploy.targets.cpu.packing.bit_transposition import ONE, ZERO, collect_lanes, lane_bit
from fqt_deploy.targets.cpu.register_tile import new_schedule, placeholders
from fqt_deploy.targets.kernel_arguments import arguments_of
from fqt_deploy.targets.products import convolution_of


class PackPositionsRule:
    """Takes ``pack_positions`` with a multiple of 16 input channels: lanes of a panel are then channels of one tap."""

    ops: ClassVar[frozenset[str]] = frozenset({"pack_positions"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """Validity rows first, then the panels of each tap."""
        arguments, layer = arguments_of(function), convolution_of(function, image=function.params[0])
        if arguments is None or layer is None or arguments["in_channels"] % PANEL:
            return None
        (x,) = placeholders(function)
        height, width = layer.image
        panels, words, _ = (int(d) for d in function.params[-1].shape)
        taps, per_tap = layer.taps, arguments["in_channels"] // PANEL
        image, positions = layer.output[0] * layer.output[1], layer.positions
        # the pattern of valid positions repeats after a whole number of images that is a whole number of words
        period = math.lcm(image, WORD) // WORD if positions % WORD == 0 else words

        def place(position: Any, tap: Any) -> tuple[Any, Any, Any]:
            at = position % image
            return layer.input_position((at // layer.output[1], at % layer.output[1]), layer.tap(tap))

        k = te.reduce_axis((0, WORD), "k")

        def is_valid(tap: Any, word: Any) -> Any:
            position = word * WORD + k
            exists = tirx.all(tap < taps, position < positions, place(position, tap)[0])
            return te.sum(tirx.Select(exists, ONE << k.astype("uint32"), ZERO), axis=k)

        mask_panels = panel_count(taps)
        valid = te.compute((mask_panels * PANEL, period), is_valid, name="valid")
        shifted = layer.stride == (1, 1) and layer.output == layer.image

        def bit(tap: Any, panel: Any, word: Any, lane: Any) -> Any:
            position = tirx.min(word * WORD + k, positions - 1)  # what lies past the end is masked by ``valid``
            channel = panel * PANEL + lane
            if shifted:
                y, z = position % image // width, position % width
            else:
                _, y, z = place(position, tap)
                y, z = tirx.max(tirx.min(y, height - 1), 0), tirx.max(tirx.min(z, width - 1), 0)
            word_of = x[position // image, y, z, panel * PANEL // WORD]
            return te.sum(lane_bit(word_of, channel % WORD, k), axis=k)

        collected = te.compute((1 if shifted else taps, per_tap, words, PANEL), bit, name="collected")
        rows = te.compute(collected.shape, lambda *i: collected[i], name="rows")

        def moved(tap: Any, panel: Any, word: Any, lane: Any) -> Any:
            if not shifted:
                return rows[tap, panel, word, lane]
            row, column = layer.tap(tap)
            distance = (row - layer.padding[0]) * width + column - layer.padding[1]
            first, shift = word + tirx.floordiv(distance, WORD), tirx.floormod(distance, WORD)
            low, high = (rows[0, panel, tirx.max(tirx.min(w, words - 1), 0), lane] for w in (first, first + 1))
            shift = shift.astype("uint32")
            return (low >> shift) | ((high << ONE) << (uint32(WORD - 1) - shift))

        def row(panel: Any, word: Any, lane: Any) -> Any:
            tap = tirx.min(panel // per_tap, taps - 1)
            values = moved(tap, panel % per_tap, word, lane) & valid[tap, word % period]
            masks = valid[tirx.max(panel - taps * per_tap, 0) * PANEL + lane, word % period]
            return tirx.reinterpret("int32", tirx.if_then_else(panel < taps * per_tap, values, masks))

        result = te.compute((panels, words, PANEL), row, name="result")
        schedule = new_schedule([x, result])
        finish = schedule.get_sblock("rows")
        schedule.reorder(*(schedule.get_loops(finish)[axis] for axis in (0, 2, 1, 3)))
        collect_lanes(schedule, schedule.get_sblock("collected"), finish, per_tap * words * PANEL)
        _schedule_valid(schedule, period)
        schedule_spatial(schedule, schedule.get_sblock("result"))
        return schedule.mod["main"]


def _schedule_valid(schedule: Any, period: int) -> None:
    """Schedules the validity rows; the lanes of a vector are words."""
    block = schedule.get_sblock("valid")
    tap, word, k = schedule.get_loops(block)
    if period % PANEL == 0:
        outer, lanes = schedule.split(word, [None, PANEL])
        schedule.reorder(tap, outer, k, lanes)
        schedule.vectorize(lanes)
        schedule.decompose_reduction(block, k)
