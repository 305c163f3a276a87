"""Time to a fixed accuracy: steps from validation curves, times of a step from one measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tools.accuracy.job import Record
from tools.accuracy.tables import by_row, reported

BELOW = 0.03
"""The target is this much below what recipe ``none`` reaches."""
SAME_STEPS = {"torch-1bit": "none"}
"""Rows that compute the same steps as another: its curve stands for theirs if they were not trained themselves."""


def steps_to(target: float, runs: Sequence[Record]) -> int | None:
    """First step after which the mean validation accuracy of ``runs`` is at least ``target``; None if it never is."""
    steps = [step for step, _ in runs[0].val]
    mean = np.mean([[accuracy for _, accuracy in run.val] for run in runs], axis=0)
    return next((step for step, accuracy in zip(steps, mean, strict=True) if accuracy >= target), None)


def time_table(records: list[Record], races: list[dict[str, Any]]) -> list[str]:
    """Time of each row to the accuracy of ``none`` less three points, beside PyTorch's on the same 1-bit network."""
    curves = {row: runs for (row, optimizer), runs in by_row(reported(records)).items() if optimizer == "adam"}
    seconds: dict[str, float] = races[-1]["step_s"]
    target = float(np.mean([run.final_val for run in curves["none"]])) - BELOW
    steps = {row: steps_to(target, curves[used]) for row in seconds if (used := _curve(row, curves))}
    times = {row: count * seconds[row] for row, count in steps.items() if count is not None}
    base = times.get("torch-1bit")
    lines = [
        f"Target: {100 * target:.1f} % on the validation images.",
        "",
        "| | steps | ms a step | seconds to the target | PyTorch, 1-bit network, takes |",
        "|---|---|---|---|---|",
    ]
    for row in steps:
        reached = steps[row] is not None
        ratio = f"{base / times[row]:.1f} times as long" if reached and base is not None and row != "torch-1bit" else ""
        cells = [str(steps[row]) if reached else "not reached", f"{1e3 * seconds[row]:.1f}"]
        lines.append(f"| {row} | " + " | ".join([*cells, f"{times[row]:.1f}" if reached else "", ratio]) + " |")
    return lines


def _curve(row: str, curves: dict[str, list[Record]]) -> str | None:
    """The row whose curve is used for ``row``."""
    return next((used for used in (row, SAME_STEPS.get(row)) if used in curves), None)
