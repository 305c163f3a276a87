"""``fqt-train`` as a process that is told to stop: it saves what it has, and resuming is as if nobody had."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import fqt_deploy

EPOCHS = 5


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


@pytest.mark.quick(only=("15-143-terminated",))
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "hung up")],
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


def training(process):
    """Wait for the first line that tells of a step."""
    while not process.stderr.readline().startswith("step "):
        assert process.poll() is None


@pytest.mark.quick
@pytest.mark.parametrize("paused", [False, True])
def test_there_is_one_writer(digits_artifact, data, tmp_path, paused):
    checkpoint, link = tmp_path / "checkpoint", tmp_path / "link"
    link.symlink_to(checkpoint)
    first = start(digits_artifact, data, checkpoint, "--epochs", 10**6)
    try:
        training(first)
        if paused:
            first.send_signal(signal.SIGSTOP)
        for path in (checkpoint, link):
            second = start(digits_artifact, data, path, "--overwrite")
            told = second.communicate(timeout=60)[1]
            assert second.returncode == 1
            assert "error[FQT508]" in told
            assert f"process {first.pid}" in told
        with pytest.raises(fqt_deploy.FqtError, match="FQT508"):
            fqt_deploy.load(digits_artifact).save_checkpoint(checkpoint)
        with pytest.raises(fqt_deploy.FqtError, match=r"FQT508.*is being trained"):
            fqt_deploy.load(digits_artifact).save(digits_artifact)
    finally:
        first.kill()
        first.wait()
    last = start(digits_artifact, data, checkpoint, "--epochs", 1, "--overwrite")
    assert last.wait(60) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "link"]


def test_a_link_is_followed(digits_artifact, data, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "checkpoint").symlink_to(tmp_path / "disk" / "real")
    finish(start(digits_artifact, data, tmp_path / "checkpoint", "--epochs", 1))
    assert (tmp_path / "checkpoint").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]


@pytest.mark.quick
@pytest.mark.parametrize("content", [b"my thesis", b"", None])
def test_only_a_checkpoint_is_overwritten(digits_artifact, data, tmp_path, content):
    path = tmp_path / "precious"
    path.write_bytes((digits_artifact / "state.safetensors").read_bytes() if content is None else content)
    before = path.read_bytes()
    process = start(digits_artifact, data, path, "--overwrite")
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "error[FQT508]" in told
    assert "is no checkpoint" in told
    assert path.read_bytes() == before


@pytest.mark.quick(only=("2>&1 | head -n 1 > /dev/null",))
@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-", "2>/dev/full", "2>&1 | head -n 1 > /dev/null"])
def test_standard_streams_may_be_closed(digits_artifact, data, tmp_path, closed):
    checkpoint = tmp_path / "checkpoint"
    program = Path(sys.executable).with_name("fqt-train")
    files = f"--data {data} --eval-data {data} --checkpoint {checkpoint} --best {tmp_path / 'best'}"
    command = f"{program} {digits_artifact} {files} {closed}"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, timeout=60, check=False)
    if "|" not in closed:
        assert done.returncode == 0, done.stderr
    session = fqt_deploy.load(digits_artifact)
    session.load_checkpoint(checkpoint)
    assert session.step_count > 0


def caught(process):
    """The signals that the process has a handler for."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return {number for number in signal.valid_signals() if int(line.split()[1], 16) >> (number - 1) & 1}


def start_loading(begin):
    """A process of ``begin()`` that is past the first lines of the command, and imports or loads.

    The interpreter catches Ctrl-C from its start to those lines, and the command catches it again, with SIGTERM. Where
    the machine is busy, this process may look too late; then another one is started.
    """
    for _ in range(20):
        process, started = begin(), False
        while process.poll() is None and signal.SIGTERM not in (now := caught(process)):
            if started and signal.SIGINT not in now:
                return process
            started = signal.SIGINT in now
            time.sleep(0.001)
        process.kill()
        process.communicate()
    raise AssertionError("never saw a command that loads")


@pytest.mark.quick
@pytest.mark.parametrize(("number", "delay"), [(signal.SIGINT, 0.0), (signal.SIGINT, 0.4), (signal.SIGTERM, 0.3)])
def test_ended_while_loading(digits_artifact, data, tmp_path, number, delay):
    process = start_loading(lambda: start(digits_artifact, data, tmp_path / "checkpoint", "--epochs", 10**6))
    time.sleep(delay)
    process.send_signal(number)
    told = process.communicate(timeout=60)[1]
    assert process.returncode in (-number, 128 + number), told
    assert "Traceback" not in told


def test_what_a_killed_writer_left_is_swept(digits_artifact, data, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    dead, alive, others = (tmp_path / name for name in (".checkpoint.abcd1234.part", ".checkpoint.efgh5678.part", ".x"))
    for path in (dead, alive, others):
        path.write_bytes(b"part")
    (tmp_path / ".checkpoint.lock").write_text("1")
    with alive.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        finish(start(digits_artifact, data, checkpoint, "--epochs", 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [alive.name, others.name, "checkpoint"]
