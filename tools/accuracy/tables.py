"""Markdown tables of the study, from its records."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, stdev

from tools.accuracy.job import Job, Record
from tools.accuracy.rows import ALL_ROWS

TUNING_SEEDS = range(100, 1000)
"""Runs with these seeds chose learning rates; accuracies that are reported come from other seeds."""


def reported(records: Iterable[Record]) -> list[Record]:
    """The records that are not there for tuning."""
    return [record for record in records if record.job.seed not in TUNING_SEEDS]


def tuning(records: Iterable[Record]) -> list[Record]:
    """The records that are there for tuning."""
    return [record for record in records if record.job.seed in TUNING_SEEDS]


def by_row(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """Repetitions with different seeds, by row and optimizer, in the order of ``ROWS``."""
    groups: defaultdict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.job.row, record.job.optimizer].append(record)
    order = list(ALL_ROWS)
    return dict(sorted(groups.items(), key=lambda item: (item[0][1], order.index(item[0][0]))))


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and its standard error if there are several values."""
    return fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def accuracy_table(records: list[Record]) -> list[str]:
    """Accuracy of each row, beside ``none`` and ``psq-1`` with the same optimizer on the seeds that both have."""
    groups = by_row(reported(records))
    lines = [
        "| recipe | optimizer | learning rate | seeds | validation % | test % | beside none | beside psq-1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (row, optimizer), runs in groups.items():
        mean, error = mean_and_error([_test(run) for run in runs])
        differences = [
            "" if other == row else _difference(runs, groups.get((other, optimizer), [])) for other in ("none", "psq-1")
        ]
        cells = [
            row,
            optimizer,
            ", ".join(sorted({f"{run.job.lr:g}" for run in runs})),
            ", ".join(str(run.job.seed) for run in sorted(runs, key=lambda run: run.job.seed)),
            f"{100 * fmean(run.final_val for run in runs):.1f}",
            f"{100 * mean:.1f}" + (f" ± {100 * error:.1f}" if error is not None else ""),
            *differences,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def tuning_table(records: list[Record]) -> list[str]:
    """Validation accuracy of the tuning runs by learning rate; the best of a row is set in bold."""
    chosen = tuning(records)
    rates = sorted({record.job.lr for record in chosen})
    lines = [
        "| recipe | optimizer | " + " | ".join(f"{rate:g}" for rate in rates) + " |",
        "|---|---|" + "---|" * len(rates),
    ]
    for (row, optimizer), runs in by_row(chosen).items():
        found = {run.job.lr: run.final_val for run in runs}
        best = max(found.values())
        cells = [_cell(found.get(rate), best) for rate in rates]
        lines.append("| " + " | ".join([row, optimizer, *cells]) + " |")
    return lines


def run_table(records: list[Record]) -> list[str]:
    """A table with one line for each run: for the few whose single outcome matters, such as pretraining."""
    lines = [
        "| network | recipe | optimizer | learning rate | batch | steps | seed | validation % | test % | weights |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        job = record.job
        cells = [job.network, job.row, job.optimizer, f"{job.lr:g}", str(job.batch), str(job.steps), str(job.seed)]
        cells += [f"{100 * record.final_val:.1f}", f"{100 * _test(record):.1f}", f"`{record.weights}`"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _difference(runs: list[Record], others: list[Record]) -> str:
    """Mean difference of test accuracies in points, over the seeds of both."""
    tests, base = ({run.job.seed: _test(run) for run in group} for group in (runs, others))
    common = tests.keys() & base.keys()
    return f"{100 * fmean(tests[seed] - base[seed] for seed in common):+.1f}" if common else ""


def _test(record: Record) -> float:
    assert record.test is not None
    return record.test


def _cell(value: float | None, best: float) -> str:
    if value is None:
        return ""
    text = f"{100 * value:.1f}"
    return f"**{text}**" if value == best else text


def same_setting(job: Job) -> tuple[object, ...]:
    """The settings that the jobs of one table have in common."""
    return job.data, job.network, job.phase, job.steps, job.batch, job.train_images, job.pretrained, job.target


TABLES: dict[str, Callable[[list[Record]], list[str]]] = {
    "accuracy": accuracy_table,
    "tuning": tuning_table,
    "runs": run_table,
}
"""Tables by the name that a document asks for."""
