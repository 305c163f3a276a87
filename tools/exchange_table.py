"""A table of what ``tools.train_distributed`` found for each exchange: ``python -m tools.exchange_table FILE.jsonl``.

Numbers are means over seeds with their standard errors; differences are those of the same seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_BESIDE = "fp32"
"""The exchange that others are compared with."""

Runs = dict[int, dict[str, Any]]
"""Runs by seed."""


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of ``values`` and its standard error, which is NaN for one value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.mean(values), error


def read_runs(text: str) -> dict[tuple[str, int], dict[str, Runs]]:
    """Runs by data and steps, exchange and seed; of the same run the last line counts."""
    found: dict[tuple[str, int], dict[str, Runs]] = defaultdict(lambda: defaultdict(dict))
    for line in text.splitlines():
        run = json.loads(line)
        wire = run["wire"] if run["processes"] > 1 else "one process"
        found[run["data"], run["steps"]][wire][run["seed"]] = run
    return found


def shown(values: Sequence[float], digits: int, factor: float = 1) -> str:
    """The mean of ``values`` times ``factor`` and its standard error, which one value does not have."""
    mean, error = mean_and_error([factor * value for value in values])
    return f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def accuracy_and_loss(runs: Runs, beside: Runs) -> list[str]:
    """Cells of ``runs``: accuracy in % and last loss, each with its difference from the runs ``beside`` of one seed."""
    cells = []
    for name, digits, factor in (("accuracy", 2, 100), ("last_loss", 4, 1)):
        cells.append(shown([run[name] for run in runs.values()], digits, factor))
        differences = [runs[seed][name] - beside[seed][name] for seed in sorted(runs.keys() & beside.keys())]
        cells.append(shown(differences, digits, factor) if differences else "")
    return cells


def table(text: str) -> str:
    """The table, in Markdown, of the lines of JSON in ``text``."""
    rows = [
        "| data | steps | exchange | seeds | accuracy, % | beside fp32 | loss | beside fp32 | bytes sent in a step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (data, steps), wires in read_runs(text).items():
        for wire, runs in wires.items():
            cells = accuracy_and_loss(runs, wires.get(_BESIDE, {}) if wire != _BESIDE else {})
            sent = next(iter(runs.values()))["sent_bytes"]
            rows.append(f"| {data} | {steps} | {wire} | {len(runs)} | {' | '.join(cells)} | {sent:,} |")
    return "\n".join(rows)


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    print(table(parser.parse_args().file.read_text()))


if __name__ == "__main__":
    main()
