"""Each command also runs as a module, for whom its script is not on the path."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["cli", "cli_export", "cli_profile", "cli_train", "train"])
def test_a_command_runs_as_a_module(module):
    command = [sys.executable, "-m", f"fqt_deploy.{module}", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert f"fqt_deploy.{module}, version " in done.stdout
