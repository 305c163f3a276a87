"""Plots of the study, as SVG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from tools.accuracy.job import Record
from tools.accuracy.tables import by_row, reported

mpl.rcParams["svg.hashsalt"] = "fqt-deploy"  # the same file from the same results
mpl.rcParams["svg.fonttype"] = "none"


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as SVG without a date."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")


def axes_of(width: float = 7.0, height: float = 4.0) -> tuple[Figure, Any]:
    """A figure with one pair of axes and a grid."""
    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def validation_curves(records: list[Record], path: Path) -> None:
    """Validation accuracy over steps, mean over seeds, one curve for each row and optimizer."""
    figure, axes = axes_of()
    groups = by_row(reported(records))
    several = len({optimizer for _, optimizer in groups}) > 1
    for (row, optimizer), runs in groups.items():
        steps = [step for step, _ in runs[0].val]
        mean = 100 * np.mean([[accuracy for _, accuracy in run.val] for run in runs], axis=0)
        axes.plot(steps, mean, marker=".", label=f"{row} {optimizer}" if several else row)
    axes.set_xlabel("step")
    axes.set_ylabel("validation accuracy, %")
    axes.legend(fontsize="small", ncols=2)
    save(figure, path)


PLOTS: dict[str, Callable[[list[Record], Path], None]] = {"curves": validation_curves}
"""Plots by the name that a document asks for."""
