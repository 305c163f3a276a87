"""A table of runs with statistics of one process and of all: ``python -m tools.statistics_table FILE.jsonl``.

The lines are those of ``tools.train_distributed``. Numbers are means over seeds with their standard errors; differences
are those of the same seeds, from one process on the whole batch. The distance of two curves is the root mean square,
over the first steps that a line holds, of the differences of their losses.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tools.exchange_table import Runs, accuracy_and_loss, shown

_BESIDE = "one process"
"""The runs that others are compared with."""


def read_runs(text: str) -> dict[tuple[str, int, str], dict[str, Runs]]:
    """Runs by data, steps and recipe, whose statistics they had, and seed; of the same run the last line counts."""
    found: dict[tuple[str, int, str], dict[str, Runs]] = defaultdict(lambda: defaultdict(dict))
    for line in text.splitlines():
        run = json.loads(line)
        whose = f"{run['processes']}, {run['batch_norm']}" if run["processes"] > 1 else _BESIDE
        found[run["data"], run["steps"], run["recipe"]][whose][run["seed"]] = run
    return found


def distance(losses: Sequence[float], others: Sequence[float]) -> float:
    """The root mean square of the differences of two curves."""
    return math.sqrt(statistics.mean((a - b) ** 2 for a, b in zip(losses, others, strict=True)))


def table(text: str) -> str:
    """The table, in Markdown, of the lines of JSON in ``text``."""
    rows = [
        "| data | recipe | processes | seeds | accuracy, % | beside one | last losses | beside one | "
        "distance of curves |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (data, _, recipe), all_runs in read_runs(text).items():
        one = all_runs.get(_BESIDE, {})
        for whose, runs in all_runs.items():
            beside = one if whose != _BESIDE else {}
            cells = accuracy_and_loss(runs, beside)
            curves = [
                distance(runs[seed]["losses"], one[seed]["losses"]) for seed in sorted(runs.keys() & beside.keys())
            ]
            cells.append(shown(curves, 4) if curves else "")
            rows.append(f"| {data} | {recipe} | {whose} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    print(table(parser.parse_args().file.read_text()))


if __name__ == "__main__":
    main()
