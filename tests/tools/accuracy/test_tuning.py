import pytest

from fqt_deploy.core.diagnostics import FqtError
from tools.accuracy.tuning import tuned_lr, validation_by_lr


def test_the_rate_of_best_validation_is_taken_never_of_best_test(job, record):
    records = [
        record(lr=1e-3, seed=100, val=0.7, test=0.1),
        record(lr=3e-3, seed=100, val=0.6, test=0.9),
        record(lr=1e-2, seed=100, val=0.9, row="once-4"),
    ]
    assert tuned_lr(job(lr=0.0, seed=1), records) == job(lr=1e-3, seed=1)


def test_only_seeds_tried_at_every_rate_count(job, record):
    records = [
        record(lr=1e-3, seed=100, val=0.7),
        record(lr=3e-3, seed=100, val=0.6),
        record(lr=1e-3, seed=0, val=0.2),
    ]
    assert validation_by_lr(job(), records) == {1e-3: 0.7, 3e-3: 0.6}


def test_nothing_to_tune_from_is_an_error(job, record):
    with pytest.raises(FqtError, match="no run of digits transfer none with adam"):
        tuned_lr(job(), [record(steps=10)])
