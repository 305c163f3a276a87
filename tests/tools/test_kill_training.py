"""A few kills in Python and in C; ``python -m tools.kill_training`` does as many as one likes."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kills", [1, 4])
def test_nothing_is_lost(digits_artifact, c_api, kills):
    options = ["--kills", str(kills), "--artifact", digits_artifact, "--c-api", c_api]
    command = [sys.executable, "-m", "tools.kill_training", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"{kills} kill") == 2
    assert done.stdout.count("nothing lost") == 2
