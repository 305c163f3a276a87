"""Which devices run which artifacts."""

import pytest

from fqt_deploy.runtime.architecture import can_run, parse


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (["sm_80"], (8, 0), True),
        (["sm_80"], (8, 6), True),
        (["sm_86"], (8, 0), False),
        (["sm_80"], (7, 5), False),
        (["sm_80"], (9, 0), True),  # translates the PTX
        (["sm_80", "sm_90a"], (9, 0), True),
        (["sm_90a"], (8, 9), False),
        (["sm_80", "sm_90a"], (12, 0), True),
        (["sm_80", "sm_100"], (8, 9), True),
    ],
)
def test_devices_and_artifacts(architectures, capability, runs):
    assert can_run(architectures, capability) is runs


def test_names_are_read_from_the_right():
    assert parse("sm_120") == (12, 0, False)
    assert parse("sm_90a") == (9, 0, True)


def test_without_ptx_only_the_listed_devices_run_it():
    assert can_run(["sm_90a"], (9, 0), ptx=False)
    assert not can_run(["sm_90a"], (10, 0), ptx=False)
