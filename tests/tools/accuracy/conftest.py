import pytest

from tools.accuracy.job import Job, Record


@pytest.fixture(scope="session")
def job():
    """Makes a job; keywords change its fields."""

    def make(**changes):
        fields = {
            "data": "digits", "network": "digits", "phase": "transfer", "row": "none", "optimizer": "adam", "lr": 1e-3,
            "steps": 20, "batch": 64, "train_images": None, "seed": 0, "pretrained": "abc",
        }  # fmt: skip
        return Job(**{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def record(job):
    """Makes a record; keywords change the fields of its job."""

    def make(val=0.5, test=0.6, curve=None, **changes):
        return Record(job(**changes), "abc", [(20, 1.0)], curve or [(10, val / 2), (20, val)], test)

    return make
