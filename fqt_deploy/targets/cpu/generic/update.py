"""Optimizer updates: one pass over parameter, gradient and moments, all stages of a vector in registers."""

from __future__ import annotations

import math
from typing import ClassVar

from tvm import s_tir, tirx

from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.generic.elementwise import LANES, PARALLEL_ELEMENTS, extents


class UpdateRule:
    """Schedules every optimizer update."""

    ops: ClassVar[frozenset[str]] = frozenset(
        {
            "accumulate_gradient", "adadelta_update", "adagrad_update", "adam_update", "average_parameter",
            "lion_update", "nadam_product_update", "nadam_update", "radam_update", "rmsprop_momentum_update",
            "rmsprop_update", "scaled_update", "sgd_momentum_update", "sgd_update",
        }
    )  # fmt: skip

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """Compute all stages of sixteen elements, then write the new values over the old."""
        schedule = s_tir.Schedule(function)
        blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
        shape = [int(d) for d in function.params[0].shape]
        count = int(function.attrs["fqt.outputs"])
        if shape and shape[-1] % LANES == 0:
            *outer, last = schedule.get_loops(blocks[-1])  # one loop nest writes all outputs
            vectors, lanes = schedule.split(last, [None, LANES])
            for stage in reversed([block for block in blocks[:-count] if extents(schedule, block) == shape]):
                schedule.compute_at(stage, vectors, preserve_unit_loops=True)
                schedule.vectorize(schedule.get_loops(stage)[-1])
            schedule.vectorize(lanes)
            if math.prod(shape) >= PARALLEL_ELEMENTS:
                schedule.parallel(outer[0] if outer else vectors)
        return schedule.mod["main"]
