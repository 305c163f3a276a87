"""Plots of the study, as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from tools.accuracy.gradient_noise import WHOLE
from tools.accuracy.job import Record
from tools.accuracy.tables import by_row, reported, tuning

mpl.rcParams["svg.hashsalt"] = "fqt-deploy"  # the same file from the same results
mpl.rcParams["svg.fonttype"] = "none"

SIZE = (7.0, 4.0)
"""Width and height of one panel, inches."""


def validation_curves(records: list[Record], path: Path) -> None:
    """Validation accuracy over steps, mean over seeds, one curve for each row and optimizer."""
    figure, (axes,) = side_by_side(1)
    groups = by_row(reported(records))
    several = len({optimizer for _, optimizer in groups}) > 1
    for (row, optimizer), runs in groups.items():
        steps = [step for step, _ in runs[0].val]
        mean = 100 * np.mean([[accuracy for _, accuracy in run.val] for run in runs], axis=0)
        axes.plot(steps, mean, marker=".", label=f"{row} {optimizer}" if several else row)
    axes.set(xlabel="step", ylabel="validation accuracy, %")
    axes.legend(fontsize="small", ncols=2)
    save(figure, path)


def learning_rates(records: list[Record], path: Path) -> None:
    """Validation accuracy of the tuning runs over the learning rate: one panel for each optimizer."""
    groups = by_row(tuning(records))
    optimizers = sorted({optimizer for _, optimizer in groups})
    figure, panels = side_by_side(len(optimizers), sharey=True)
    for axes, optimizer in zip(panels, optimizers, strict=True):
        for (row, used), runs in groups.items():
            if used == optimizer:
                found = dict(sorted((run.job.lr, 100 * run.final_val) for run in runs))
                axes.plot(list(found), list(found.values()), marker=".", label=row)
        axes.set(xscale="log", xlabel="learning rate", title=optimizer)
        axes.legend(fontsize="small")
    panels[0].set_ylabel("validation accuracy, %")
    save(figure, path)


def noise_by_layer(lines: list[dict[str, Any]], path: Path) -> None:
    """Relative variance of each layer's weight gradient in whole steps: one panel for each point in training."""
    steps = [line for line in lines if line["kind"] == "step" and line["layer"] != WHOLE]
    points = list(dict.fromkeys(line["point"] for line in steps))
    figure, panels = side_by_side(len(points), sharey=True)
    for axes, point in zip(panels, points, strict=True):
        for row in dict.fromkeys(line["row"] for line in steps):
            chosen = [line for line in steps if (line["row"], line["point"]) == (row, point)]
            layers = [line["layer"].removesuffix(".weight") for line in chosen]
            axes.plot(layers, [line["variance"] for line in chosen], marker=".", label=row)
        axes.set(yscale="log", title=point)
        axes.tick_params(axis="x", labelrotation=60)
    panels[0].set_ylabel("variance / squared norm")
    panels[0].legend(fontsize="small")
    save(figure, path)


def sensitivity(records: list[Record], lines: list[dict[str, Any]], path: Path) -> None:
    """Test accuracy over the standard deviation of the gradient, one curve for each optimizer.

    The deviation of a recipe is the mean over the points in training that were measured; ``none`` has none.
    """
    deviation: dict[str, float] = {"none": 0.0}
    for row in dict.fromkeys(line["row"] for line in lines):
        chosen = [line["variance"] for line in lines if line["row"] == row and line["layer"] == WHOLE]
        deviation[row] = float(np.mean(np.sqrt(chosen)))
    figure, (axes,) = side_by_side(1)
    groups = by_row(reported(records))
    for optimizer in sorted({optimizer for _, optimizer in groups}):
        found = sorted(
            (deviation[row], 100 * float(np.mean([run.test for run in runs if run.test is not None])), row)
            for (row, used), runs in groups.items()
            if used == optimizer and row in deviation
        )
        axes.plot([x for x, _, _ in found], [y for _, y, _ in found], marker="o", label=optimizer)
        for x, y, row in found:
            axes.annotate(row, (x, y), textcoords="offset points", xytext=(4, 4), fontsize="x-small")
    axes.set(xlabel="standard deviation of the weight gradient / its norm", ylabel="test accuracy, %")
    axes.set_xscale("symlog", linthresh=0.1)
    axes.legend(fontsize="small")
    save(figure, path)


def side_by_side(count: int, *, sharey: bool = False) -> tuple[Figure, Any]:
    """One figure with ``count`` panels side by side, and the panels."""
    figure = Figure(figsize=(SIZE[0] if count == 1 else SIZE[0] * 0.6 * count, SIZE[1]))
    panels = figure.subplots(1, count, sharey=sharey, squeeze=False)[0]
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure, panels


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as SVG, the same bytes from the same results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")
