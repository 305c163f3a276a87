"""The ideas that were tried to train better at an average of one bit and the same cost, as rows of the study.

``once-4`` is what every idea is compared with. An idea is a change of its passes (``idea_selections.py``,
``idea_quantizers.py``), a schedule of widths over training, or other options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fqt_deploy.core.options import CompileOptions
from fqt_deploy.passes.insert_scq import InsertSCQ
from fqt_deploy.passes.pass_base import Pass
from fqt_deploy.passes.pipelines import training_passes
from fqt_deploy.passes.select_nested import SelectNested
from fqt_deploy.passes.select_once import SelectOnce
from tools.accuracy.idea_quantizers import ClippedSCQ, NoSCQ, PositionSCQ, ReachSCQ, SplitSCQ
from tools.accuracy.idea_selections import (
    ClippedSelection,
    DefensiveSelection,
    PowerSelection,
    TemperedSelection,
    UnprojectedSelection,
    WeightedProjection,
)


@dataclass(frozen=True)
class Change:
    """A pass that stands in for the one of its name.

    Attributes:
        kind: its class.
        values: fields that differ from those of the pass it stands in for.
    """

    kind: type[Pass]
    values: Mapping[str, Any] = field(default_factory=dict)


CHANGES: dict[str, tuple[Change, ...]] = {
    "once-4-uniform": (Change(PowerSelection, {"power": 0.0}),),
    "once-4-root": (Change(PowerSelection, {"power": 0.5}),),
    "once-4-square": (Change(PowerSelection, {"power": 2.0}),),
    "once-4-defensive": (Change(DefensiveSelection, {"uniform": 0.5}),),
    "once-4-unweighted": (Change(TemperedSelection),),
    "once-4-half-weighted": (Change(TemperedSelection, {"exponent": 0.5}),),
    "once-4-square-unweighted": (Change(TemperedSelection, {"power": 2.0}),),
    "once-4-square-half-weighted": (Change(TemperedSelection, {"power": 2.0, "exponent": 0.5}),),
    "once-4-clipped-weights": (Change(ClippedSelection, {"largest": 2.0}),),
    "once-4-weighted-projection": (Change(WeightedProjection),),
    "once-4-unprojected": (Change(UnprojectedSelection),),
    "once-4-range-85": (Change(ClippedSCQ, {"share": 0.85}),),
    "once-4-range-70": (Change(ClippedSCQ, {"share": 0.7}),),
    "once-4-fp32": (Change(NoSCQ),),
    "once-4-d6w2": (Change(SplitSCQ, {"bits": 6, "weight_bits": 2}),),
    "once-4-d2w6": (Change(SplitSCQ, {"bits": 2, "weight_bits": 6}),),
    "once-4-d5w3": (Change(SplitSCQ, {"bits": 5, "weight_bits": 3}),),
    "once-4-d3w5": (Change(SplitSCQ, {"bits": 3, "weight_bits": 5}),),
    "once-3-d2w4": (Change(SelectOnce, {"bits": 3}), Change(SplitSCQ, {"bits": 2, "weight_bits": 4})),
    "once-2-d1w3": (
        Change(SelectOnce, {"bits": 2}),
        Change(SplitSCQ, {"bits": 1, "grid": "minmax", "weight_bits": 3}),
    ),
    "once-3-d1w5": (
        Change(SelectOnce, {"bits": 3}),
        Change(SplitSCQ, {"bits": 1, "grid": "minmax", "weight_bits": 5}),
    ),
    "once-4-eighth": (Change(SelectOnce, {"bits": 8}),),
    "once-4-three-eighths": (Change(SelectOnce, {"bits": 8 / 3}),),
    "once-6": (Change(SelectOnce, {"bits": 6}), Change(InsertSCQ, {"bits": 6})),
    "nested-4-flat": (Change(SelectNested, {"exponent": 0.25}),),
    "nested-4-steep": (Change(SelectNested, {"exponent": 1.0}),),
    "once-3-fp32": (Change(SelectOnce, {"bits": 3}), Change(NoSCQ)),
    "once-2-fp32": (Change(SelectOnce, {"bits": 2}), Change(NoSCQ)),
    **{
        f"nested-{bits}-reach-{reach}-projected": (
            Change(SelectNested, {"bits": bits}),
            Change(ReachSCQ, {"bits": bits, "reach": float(reach)}),
        )
        for bits, reach in ((4, 6), (4, 8), (4, 12), (3, 4), (3, 8), (3, 12))
    },
    "nested-4-d5w3-projected": (Change(SplitSCQ, {"bits": 5, "weight_bits": 3}),),
    "nested-2-positions-projected": (Change(SelectNested, {"bits": 2}), Change(PositionSCQ, {"share": 0.5})),
    "once-1-positions-projected": (Change(SelectOnce, {"bits": 1}), Change(PositionSCQ, {"share": 0.25})),
}
"""The changes that rows make to ``once-4``, or from ``nested-4`` where a row's name begins with that, by row.

All cost the same but some: ``once-4-eighth`` and ``once-4-three-eighths`` are half and one and a half of it, for
schedules; ``-fp32`` tells what quantization costs; the products of ``-positions`` are computed on whole samples.
"""


def base_settings(idea: str) -> dict[str, Any]:
    """The options whose passes an idea changes; a name that ends in ``-projected`` has the default projection."""
    return {
        "agp": idea.partition("-")[0],
        "grad_bits": 4,
        "projection": "auto" if idea.endswith("-projected") else "off",
    }


SCHEDULES: dict[str, tuple[str, ...]] = {
    "eighth-first": ("once-4-eighth", "once-4-three-eighths"),
    "eighth-last": ("once-4-three-eighths", "once-4-eighth"),
    "once-8-4-2": ("once-8", "once-4", "once-2"),
    "once-2-4-8": ("once-2", "once-4", "once-8"),
    "once-4-sampled-4": ("once-4", "once-4", "sampled-4"),
}
"""Rows that follow each other, for the same number of steps each."""


def changed_passes(options: CompileOptions, idea: str) -> tuple[Pass, ...]:
    """The passes of ``options`` with the stand-ins of row ``idea``."""
    changes = {change.kind.name: change for change in CHANGES[idea]}

    def changed(item: Pass) -> Pass:
        if item.name not in changes:
            return item
        own = {item_field.name: getattr(item, item_field.name) for item_field in fields(item)}
        return changes[item.name].kind(**{**own, **changes[item.name].values})

    return tuple(changed(item) for item in training_passes(options))
