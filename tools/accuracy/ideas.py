"""What was tried to train better at an average of one bit and the same cost, as rows of the study.

``once-4`` is what every idea is compared with. An idea is a change of its passes (``idea_passes.py``), a schedule of
widths over training, or other options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fqt_deploy.core.options import CompileOptions
from fqt_deploy.passes.pass_base import Pass
from fqt_deploy.passes.pipelines import training_passes
from tools.accuracy.idea_passes import (
    ClippedSCQ,
    ClippedSelection,
    DefensiveSelection,
    PowerSelection,
    StratifiedSelection,
    UnprojectedSelection,
    UnweightedSelection,
    WeightedProjection,
)

CHANGES: dict[str, tuple[type[Pass], Mapping[str, Any]]] = {
    "uniform": (PowerSelection, {"power": 0.0}),
    "root": (PowerSelection, {"power": 0.5}),
    "square": (PowerSelection, {"power": 2.0}),
    "defensive": (DefensiveSelection, {"uniform": 0.5}),
    "unweighted": (UnweightedSelection, {}),
    "clipped-weights": (ClippedSelection, {"largest": 2.0}),
    "stratified": (StratifiedSelection, {}),
    "weighted-projection": (WeightedProjection, {}),
    "unprojected": (UnprojectedSelection, {}),
    "range-85": (ClippedSCQ, {"share": 0.85}),
    "range-70": (ClippedSCQ, {"share": 0.7}),
    "range-50": (ClippedSCQ, {"share": 0.5}),
}
"""By idea: the pass that stands in for the one of its name, and what it has besides that one's fields."""

SCHEDULES: dict[str, tuple[str, ...]] = {
    "once-8-4-2": ("once-8", "once-4", "once-2"),
    "once-2-4-8": ("once-2", "once-4", "once-8"),
    "once-4-sampled-4": ("once-4", "once-4", "sampled-4"),
}
"""Rows that follow each other, for the same number of steps each."""


def changed_passes(options: CompileOptions, idea: str) -> tuple[Pass, ...]:
    """The passes of ``options`` with the stand-in of ``idea``."""
    kind, extra = CHANGES[idea]

    def changed(item: Pass) -> Pass:
        if item.name != kind.name:
            return item
        own = {field.name: getattr(item, field.name) for field in fields(item)}
        return kind(**own, **extra)

    return tuple(changed(item) for item in training_passes(options))
