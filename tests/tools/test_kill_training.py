"""A few kills in Python and in C; ``python -m tools.kill_training`` does as many as one likes."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_nothing_is_lost(digits_artifact, c_api):
    options = ["--kills", "4", "--artifact", digits_artifact, "--c-api", c_api]
    command = [sys.executable, "-m", "tools.kill_training", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("4 kills") == 2
    assert done.stdout.count("nothing lost") == 2
