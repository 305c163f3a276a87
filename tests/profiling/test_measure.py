"""How many steps are measured: enough of short ones, few of long ones, what was asked for of any."""

import itertools

import pytest

from fqt_deploy.profiling.measure import _goes_on


@pytest.mark.parametrize(
    ("step_s", "asked", "expected"),
    [
        (0.001, None, 200), (0.01, None, 50), (0.1, None, 8), (0.9, None, 8), (1.5, None, 6), (3.0, None, 3),
        (60.0, None, 3), (60.0, 5, 5), (0.1, 20, 20), (0.1, 1, 5), (1.0, 1, 1),
    ],
)  # fmt: skip
def test_steps(step_s, asked, expected):
    assert next(n for n in itertools.count() if not _goes_on(n, n * step_s, asked)) == expected
