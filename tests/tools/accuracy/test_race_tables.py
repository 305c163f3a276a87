from tools.accuracy.race_tables import steps_to, time_table


def test_the_first_step_of_the_mean_curve_counts(record):
    runs = [record(curve=[(10, 0.4), (20, 0.6)]), record(curve=[(10, 0.5), (20, 0.8)], seed=1)]
    assert steps_to(0.45, runs) == 10
    assert steps_to(0.46, runs) == 20
    assert steps_to(0.71, runs) is None


def test_times_are_steps_by_seconds_and_pytorch_takes_the_steps_of_none(record):
    records = [
        record(curve=[(10, 0.7), (20, 0.8), (30, 0.8)]),
        record(row="once-4", curve=[(10, 0.6), (20, 0.7), (30, 0.75)]),
        record(row="once-4", steps=60, curve=[(20, 0.6), (40, 0.78), (60, 0.8)]),
        record(row="psq-1", curve=[(10, 0.6), (20, 0.6), (30, 0.6)]),
    ]
    race = {"step_s": {"once-4": 0.1, "psq-1": 0.1, "torch-1bit": 2.0, "torch-fp32": 1.0}}
    table = time_table(records, race)
    assert table[0] == "Target: 77.0 % on the validation images."
    assert table[4:] == [
        "| once-4 | 20 | not reached | 100.0 |  |  |",
        "| once-4 | 60 | 40 | 100.0 | 4.0 | 10.0 times as long |",
        "| psq-1 | 20 | not reached | 100.0 |  |  |",
        "| torch-1bit | 20 | 20 | 2000.0 | 40.0 |  |",
    ]
