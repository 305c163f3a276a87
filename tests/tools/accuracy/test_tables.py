import pytest

from tools.accuracy.tables import accuracy_table, mean_and_error, run_table, tuning_table


def test_mean_and_standard_error():
    assert mean_and_error([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / 3**0.5))
    assert mean_and_error([4.0]) == (4.0, None)


def test_accuracy_is_of_reported_seeds_only_beside_none_and_psq_1(record):
    records = [
        record(row="once-4", seed=0, test=0.70),
        record(row="once-4", seed=1, test=0.72),
        record(row="none", test=0.75),
        record(row="psq-1", test=0.6),
        record(row="none", seed=100, test=0.1),
    ]
    table = accuracy_table(records)[2:]
    assert table[0] == "| none | adam | 0.001 | 0 | 50.0 | 75.0 |  | +15.0 |"
    assert table[1].startswith("| psq-1 |")
    assert table[2] == "| once-4 | adam | 0.001 | 0, 1 | 50.0 | 71.0 ± 1.0 | -5.0 | +10.0 |"
    assert len(table) == 3


def test_tuning_shows_validation_and_marks_the_best(record):
    records = [record(seed=100, lr=1e-3, val=0.5), record(seed=100, lr=3e-3, val=0.6), record(seed=0, lr=1e-2, val=0.9)]
    assert tuning_table(records)[2:] == ["| none | adam | 50.0 | **60.0** |"]


def test_single_runs(record):
    assert run_table([record(steps=7)])[2].startswith("| digits | none | adam | 0.001 | 64 | 7 | 0 | 50.0 | 60.0 |")
