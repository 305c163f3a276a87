"""The table of ideas, each beside the row that it changes."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean

from tools.accuracy.job import Record
from tools.accuracy.tables import mean_and_error

BASE = ("once-4", "adam")
"""Row and optimizer that every idea is compared with."""


def ideas_table(records: list[Record]) -> list[str]:
    """Accuracy of every row over all its seeds, best on validation first.

    ``beside once-4`` is the mean difference on validation to runs of ``once-4`` with the same seeds: they have the same
    batches, augmentation and new classifier.
    """
    groups: defaultdict[tuple[str, str], dict[int, Record]] = defaultdict(dict)
    for record in records:
        groups[record.job.row, record.job.optimizer][record.job.seed] = record
    base = groups[BASE]
    lines = ["| row | optimizer | seeds | validation % | test % | beside once-4 |", "|---|---|---|---|---|---|"]
    ordered = sorted(groups.items(), key=lambda item: -fmean(run.final_val for run in item[1].values()))
    for (row, optimizer), runs in ordered:
        common = sorted(runs.keys() & base.keys())
        beside = [runs[seed].final_val - base[seed].final_val for seed in common]
        cells = [
            row,
            optimizer,
            ", ".join(str(seed) for seed in sorted(runs)),
            _percent([run.final_val for run in runs.values()]),
            _percent([run.test or 0.0 for run in runs.values()]),
            "" if (row, optimizer) == BASE or not beside else _percent(beside, "+"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _percent(values: list[float], sign: str = "") -> str:
    mean, error = mean_and_error(values)
    return f"{100 * mean:{sign}.1f}" + (f" ± {100 * error:.1f}" if error is not None else "")
