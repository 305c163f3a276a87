"""Time to a fixed accuracy: steps from validation curves, times of a step from one measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fqt_deploy.core.diagnostics import FqtError
from tools.accuracy.job import Record
from tools.accuracy.tables import reported

BELOW = 0.03
"""The target is this much below what recipe ``none`` reaches."""
SAME_STEPS = {"torch-1bit": "none"}
"""Rows that compute the same steps as another: its curve stands for theirs if they were not trained themselves."""


def steps_to(target: float, runs: Sequence[Record]) -> int | None:
    """First step after which the mean validation accuracy of ``runs`` is at least ``target``; None if it never is."""
    steps = [step for step, _ in runs[0].val]
    mean = np.mean([[accuracy for _, accuracy in run.val] for run in runs], axis=0)
    return next((step for step, accuracy in zip(steps, mean, strict=True) if accuracy >= target), None)


def time_table(records: list[Record], race: dict[str, Any]) -> list[str]:
    """Time of each row to the accuracy of ``none`` less three points, beside PyTorch's on the same 1-bit network.

    Runs of different length are rows of their own; the target is that of the shortest runs of ``none``.
    """
    curves: dict[tuple[str, int], list[Record]] = {}
    for record in sorted(reported(records), key=lambda record: record.job.steps):
        if record.job.optimizer == "adam":
            curves.setdefault((record.job.row, record.job.steps), []).append(record)
    seconds: dict[str, float] = race["step_s"]
    base = next((runs for (row, _), runs in curves.items() if row == "none"), None)
    if base is None:
        raise FqtError("no run of row none to take the target from", code="FQT502", hint="train it first")
    target = float(np.mean([run.final_val for run in base])) - BELOW
    found = [_Time(row, *one) for row in seconds for one in _runs_of(row, curves, target)]
    pytorch = next((seconds[o.row] * o.steps for o in found if o.row == "torch-1bit" and o.steps is not None), None)
    lines = [
        f"Target: {100 * target:.1f} % on the validation images.",
        "",
        "| | steps of the run | steps to the target | ms a step | seconds to the target | PyTorch, 1-bit network |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        ms = f"{1e3 * seconds[one.row]:.1f}"
        if one.steps is None:
            cells = [str(one.length), "not reached", ms, "", ""]
        else:
            time = one.steps * seconds[one.row]
            ratio = "" if pytorch is None or one.row == "torch-1bit" else f"{pytorch / time:.1f} times as long"
            cells = [str(one.length), str(one.steps), ms, f"{time:.1f}", ratio]
        lines.append(f"| {one.row} | " + " | ".join(cells) + " |")
    return lines


@dataclass(frozen=True)
class _Time:
    """Steps to the target of the runs of one row of one length; None if it was not reached."""

    row: str
    length: int
    steps: int | None


def _runs_of(row: str, curves: dict[tuple[str, int], list[Record]], target: float) -> Iterator[tuple[int, int | None]]:
    """Length and steps to the target of all runs of ``row``, or of what computes the same steps."""
    trained = {row for row, _ in curves}
    used = row if row in trained else SAME_STEPS.get(row)
    for (other, length), runs in curves.items():
        if other == used:
            yield length, steps_to(target, runs)
