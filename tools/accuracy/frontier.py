"""Accuracy against seconds of training: runs of different lengths beside full precision in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from fqt_deploy.core.diagnostics import FqtError
from tools.accuracy.job import Record
from tools.accuracy.rows import ALL_ROWS, is_binarized
from tools.accuracy.tables import mean_and_error, reported


@dataclass(frozen=True)
class Training:
    """One way to train, as often as it was repeated.

    Attributes:
        row: the recipe, or PyTorch's.
        steps: the length of a run.
        runs: the repetitions.
        step: seconds of a step; None where it was not measured.
    """

    row: str
    steps: int
    runs: tuple[Record, ...]
    step: float | None

    @property
    def seconds(self) -> float | None:
        """Seconds of a whole run, without what is done between the steps."""
        return None if self.step is None else self.steps * self.step

    @property
    def tests(self) -> dict[int, float]:
        """Test accuracy by seed."""
        return {run.job.seed: run.test for run in self.runs if run.test is not None}


def trainings(records: Sequence[Record], race: dict[str, Any]) -> list[Training]:
    """The ways to train that ``records`` hold, shorter ones first, with the seconds of a step from ``race``.

    Runs of full precision in PyTorch, which computes the same numbers in float32 and about the same in bfloat16, count
    with the faster of the two.
    """
    seconds: dict[str, float] = dict(race["step_s"])
    full = [value for row, value in seconds.items() if row in ("torch-fp32", "torch-bf16")]
    if full:
        seconds |= dict.fromkeys(("torch-fp32", "torch-bf16"), min(full))
    groups: dict[tuple[str, int], list[Record]] = {}
    for record in reported(records):
        groups.setdefault((record.job.row, record.job.steps), []).append(record)
    order = list(ALL_ROWS)
    return [
        Training(row, steps, tuple(groups[row, steps]), seconds.get(row))
        for row, steps in sorted(groups, key=lambda key: (key[1], order.index(key[0])))
    ]


def frontier_table(records: Sequence[Record], race: dict[str, Any]) -> list[str]:
    """Accuracy and seconds of every way to train, beside full precision in PyTorch with the same seeds.

    Raises:
        FqtError: FQT502 if full precision is not among the records.
    """
    found = trainings(records, race)
    full = next((each for each in found if not is_binarized(each.row)), None)
    if full is None:
        raise FqtError("no run of full precision to compare with", code="FQT502", hint="train row torch-fp32 first")
    lines = [
        "| row | steps | seeds | validation % | test % | beside full precision | ms a step | seconds | PyTorch takes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        mean, error = mean_and_error(list(each.tests.values()))
        common = each.tests.keys() & full.tests.keys()
        beside = fmean(each.tests[seed] - full.tests[seed] for seed in common) if common and each != full else None
        times = [""] * 3
        if each.step is not None and each.seconds is not None:
            times[:2] = [f"{1e3 * each.step:.1f}", f"{each.seconds:.1f}"]
            if full.seconds is not None and each != full:
                times[2] = f"{full.seconds / each.seconds:.1f} times as long"
        cells = [
            each.row,
            str(each.steps),
            ", ".join(map(str, sorted(each.tests))),
            f"{100 * fmean(run.final_val for run in each.runs):.1f}",
            f"{100 * mean:.1f}" + (f" ± {100 * error:.1f}" if error is not None else ""),
            "" if beside is None else f"{100 * beside:+.1f}",
            *times,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def frontier_plot(records: Sequence[Record], race: dict[str, Any], path: Path) -> None:
    """Validation accuracy over the seconds spent in steps, mean over seeds, one curve for each way to train."""
    from tools.accuracy.plots import save, side_by_side

    figure, (axes,) = side_by_side(1)
    for each in trainings(records, race):
        if each.step is not None:
            seconds = [each.step * step for step, _ in each.runs[0].val]
            mean = 100 * np.mean([[accuracy for _, accuracy in run.val] for run in each.runs], axis=0)
            axes.plot(seconds, mean, marker=".", label=f"{each.row}, {each.steps} steps")
    axes.set(xscale="log", xlabel="seconds in steps", ylabel="validation accuracy, %")
    axes.legend(fontsize="small")
    save(figure, path)
