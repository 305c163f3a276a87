"""``fqt-train`` as a process that is told to stop: it saves what it has, and resuming is as if nobody had."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import fqt_deploy

EPOCHS = 10


def start(artifact, data, checkpoint, *options):
    command = [Path(sys.executable).with_name("fqt-train"), artifact, "--data", data, "--checkpoint", checkpoint]
    options = ("--epochs", EPOCHS, "--schedule", "cosine", *options)
    environment = {**os.environ, "FQT_NUM_THREADS": "1"}
    command = [str(part) for part in (*command, *options)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process):
    """The last line, which tells step and loss."""
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 0, told
    return told.splitlines()[-1].rpartition("  ")[0]  # without the speed


@pytest.fixture(scope="module")
def data(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("stopping") / "digits.npz"
    np.savez(path, x=digits[0].numpy(), y=digits[1].numpy())
    return path


@pytest.fixture(scope="module")
def uninterrupted(digits_artifact, data, tmp_path_factory):
    """Last line and checkpoint of a run that nobody stopped."""
    checkpoint = tmp_path_factory.mktemp("stopping") / "checkpoint"
    return finish(start(digits_artifact, data, checkpoint)), load_file(checkpoint)


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_saves_a_checkpoint_that_resumes(digits_artifact, data, uninterrupted, tmp_path, number, code, said):
    checkpoint = tmp_path / "checkpoint"
    process = start(digits_artifact, data, checkpoint)
    while not process.stderr.readline().startswith("step "):
        assert process.poll() is None
    process.send_signal(number)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == code, told
    assert "Traceback" not in told
    assert f"{said}: saved {checkpoint}; continue with --resume" in told
    session = fqt_deploy.load(digits_artifact)
    session.load_checkpoint(checkpoint)
    assert 0 < session.step_count < uninterrupted[1]["step"]
    assert finish(start(digits_artifact, data, checkpoint, "--resume")) == uninterrupted[0]
    after = load_file(checkpoint)
    assert after.keys() == uninterrupted[1].keys()
    assert all(np.array_equal(after[name], uninterrupted[1][name]) for name in after)
