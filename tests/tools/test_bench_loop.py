"""The steps that tools.bench_loop times: that of the example's loop, and the bare one."""

from __future__ import annotations

import pytest

from tools.bench_loop import seconds, steps


@pytest.mark.slow
def test_both_steps_run() -> None:
    assert all(min(seconds(step, 2)) > 0 for step in steps(batch=4, width=8))
