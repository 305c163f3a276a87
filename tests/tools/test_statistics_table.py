"""The table of runs with statistics of one process and of all."""

import json
from pathlib import Path

import pytest

from tools.statistics_table import distance, table

STORED = Path(__file__).parents[2] / "docs" / "distributed" / "statistics.jsonl"


def line(seed, accuracy, losses, processes=2, batch_norm="local"):
    run = {"data": "d", "steps": 2, "recipe": "none", "processes": processes, "batch_norm": batch_norm, "seed": seed}
    return json.dumps({**run, "accuracy": accuracy, "last_loss": losses[-1], "losses": losses})


def test_the_distance_is_of_the_whole_curves():
    assert distance([1.0, 2.0], [1.3, 2.4]) == pytest.approx((0.25 / 2) ** 0.5)


def test_runs_are_compared_with_one_process_of_the_same_seed():
    text = "\n".join([
        line(0, 0.5, [2.0, 1.0], processes=1), line(1, 0.7, [2.0, 2.0], processes=1),
        line(0, 0.4, [2.0, 1.2]), line(1, 0.8, [2.0, 2.2]), line(2, 0.1, [9.0, 9.0], batch_norm="synchronized"),
    ])  # fmt: skip
    rows = table(text).splitlines()[2:]
    assert rows[0] == "| d | none | one process | 2 | 60.00 ± 10.00 |  | 1.5000 ± 0.5000 |  |  |"
    assert rows[1].startswith(
        "| d | none | 2, local | 2 | 60.00 ± 20.00 | 0.00 ± 10.00 | 1.7000 ± 0.5000 | 0.2000 ± 0.0000 |"
    )
    assert rows[1].endswith("| 0.1414 ± 0.0000 |")
    assert rows[2].startswith("| d | none | 2, synchronized | 1 | 10.00 |  |")


def test_the_table_in_the_docs_is_that_of_what_is_stored():
    text = (STORED.parents[1] / "distributed.md").read_text()
    assert table(STORED.read_text()) in text
