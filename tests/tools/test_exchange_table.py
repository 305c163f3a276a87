"""The table of what was found for each exchange."""

import json
from pathlib import Path

import pytest

from tools.exchange_table import mean_and_error, table

STORED = Path(__file__).parents[2] / "docs" / "distributed" / "exchange.jsonl"


def line(wire, seed, accuracy, processes=2):
    run = {"data": "d", "steps": 3, "wire": wire, "processes": processes, "seed": seed, "accuracy": accuracy}
    return json.dumps({**run, "last_loss": accuracy / 2, "sent_bytes": 1000 if wire == "fp32" else 125})


def test_mean_and_error_are_those_of_the_mean():
    assert mean_and_error([1.0, 3.0]) == (2.0, pytest.approx(1.0))


def test_differences_are_those_of_the_same_seeds():
    text = "\n".join([
        line("fp32", 0, 0.5), line("fp32", 1, 0.7), line("4-bit", 0, 0.4), line("4-bit", 1, 0.8), line("4-bit", 2, 0.1),
    ])  # fmt: skip
    rows = table(text).splitlines()
    assert rows[2].startswith("| d | 3 | fp32 | 2 | 60.00 ± 10.00 |  |")
    assert rows[3].startswith("| d | 3 | 4-bit | 3 | 43.33 ± 20.28 | 0.00 ± 10.00 |")
    assert rows[3].endswith("| 125 |")


def test_the_table_in_the_docs_is_that_of_what_is_stored():
    text = (STORED.parents[1] / "distributed.md").read_text()
    assert table(STORED.read_text()) in text
