"""The learning rate of a job, chosen by the validation accuracy of runs that differ in nothing else but the seed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from statistics import fmean

from fqt_deploy.core.diagnostics import FqtError
from tools.accuracy.job import Job, Record


def tuned_lr(job: Job, records: list[Record]) -> Job:
    """The job with the learning rate of highest mean accuracy on the validation images.

    Raises:
        FqtError: FQT502 if no run of it, with any seed, is among ``records``.
    """
    rates = validation_by_lr(job, records)
    if not rates:
        message = f"no run of {job.network} {job.phase} {job.row} with {job.optimizer} to take the learning rate from"
        raise FqtError(message, code="FQT502", hint="run it with several --lrs and a seed of its own first")
    return replace(job, lr=max(rates, key=lambda lr: rates[lr]))


def validation_by_lr(job: Job, records: list[Record]) -> dict[float, float]:
    """Mean validation accuracy of ``job`` by learning rate, over the seeds that were tried at every rate.

    A rate that was chosen has more runs than the others; their mean must not count against rates with fewer.
    """
    runs: defaultdict[float, dict[int, float]] = defaultdict(dict)
    for record in records:
        if replace(record.job, lr=job.lr, seed=job.seed) == job:
            runs[record.job.lr][record.job.seed] = record.final_val
    if not runs:
        return {}
    common = set.intersection(*(set(by_seed) for by_seed in runs.values()))
    return {lr: fmean(by_seed[seed] for seed in common) for lr, by_seed in runs.items()} if common else {}
