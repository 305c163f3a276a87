"""Two processes: one's gradients, the mean of both; what they must have in common, and when one of them dies."""

import json
import os
import re
import signal
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

import fqt_deploy
from fqt_deploy.cli_train import main
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.runtime.kernel_clock import KernelClock
from fqt_deploy.training_run import _group
from tests.distributed.conftest import BATCH, CODED, PLAIN, TOGETHER, WORKER, launch, outcome, torchrun
from tests.distributed.worker import STEPS, batches, train
from tools.kill_ranks import workers_of


@pytest.fixture(scope="module")
def results(compiled, tmp_path_factory):
    """What two processes found: by name of the job and number of the process.

    They start, and compile a script, while the artifacts that they wait for are compiled here.
    """
    out = tmp_path_factory.mktemp("results") / "r"
    started = launch(WORKER, out)
    try:
        artifacts = compiled(**TOGETHER), compiled(**CODED), compiled(BATCH, 2 * BATCH, **PLAIN)
        out.with_name("r.new").write_text("\n".join(map(str, artifacts)))
        out.with_name("r.new").rename(out)
        for code, output in map(outcome, started):
            assert code == 0, output
    finally:
        for process in started:
            process.kill()
    return {
        (job, rank): dict(np.load(f"{out}.{job}.{rank}.npz"))
        for job in ("plain", "coded", "codes", "script")
        for rank in (0, 1)
    }


def test_gradients_and_statistics_are_those_of_the_whole_batch(results, compiled, tmp_path):
    session = fqt_deploy.load(compiled(BATCH, 2 * BATCH, **PLAIN))
    train(session, None, tmp_path / "whole", batch=2 * BATCH)
    whole, half = dict(np.load(tmp_path / "whole.0.npz")), results["plain", 0]
    names = [name for name in whole if "|" in name]
    assert {"grad_sum|0.weight", "ema|5.weight", "sgd_momentum|3.bias", "buffer|4.0.running_var"} <= set(names)
    for name in ("losses", *names):
        np.testing.assert_allclose(half[name], whole[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_both_processes_have_the_same_state_and_draws_of_their_own(results):
    for job in ("plain", "coded"):
        first, second = results[job, 0], results[job, 1]
        assert first["seed"] != second["seed"]
        for name in first.keys() - {"seed"}:
            assert np.array_equal(first[name], second[name]), name
    coded = results["coded", 0]["adam_m|3.weight"]  # rounded at random, with the same numbers in both
    assert coded.dtype == np.uint8
    assert len(np.unique(coded)) > 16


def test_running_statistics_need_no_mean_and_buffers_of_their_own_get_it(results):
    """They have the same bits before a checkpoint makes one state of all."""
    first, second = results["codes", 0], results["codes", 1]
    for name in ("1.0.running_mean", "1.0.running_var", "4.0.running_mean", "4.0.running_var"):
        assert np.array_equal(first[f"own|{name}"], second[f"own|{name}"]), name
        assert not np.array_equal(first[f"own|{name}"], np.full_like(first[f"own|{name}"], "var" in name)), name
    assert first["mean"] == second["mean"] == 0.5


def test_codes_are_an_eighth_of_the_bytes_and_train(results):
    plain, coded = results["plain", 0], results["coded", 0]
    statistics = 2 * 8 * (2 * 8 + 1 + 2 * 33 + 1)  # forward and backward, in float64: two numbers a channel, and rows
    small = statistics + 4 * (8 * 9 + 8 + 33 + 33 * 10 + 10 + 2 * (8 + 33))  # these stay in float32
    codes = 2 * 17 * (4 + 288 // 2)  # half of the 33 channels, there and back
    assert coded["sent"] == STEPS * (small + codes)
    assert plain["sent"] == STEPS * (small + 4 * 33 * 288)
    assert codes / (4 * 33 * 288) == pytest.approx(
        1 / 8, rel=0.07
    )  # a scale for each channel, and one channel of zeros
    assert np.isfinite(coded["losses"]).all()
    assert not np.array_equal(plain["param|3.weight"], coded["param|3.weight"])


def test_what_does_not_fit_together_is_refused(results):
    for rank in (0, 1):
        assert results["codes", rank]["codes"].tolist() == ["FQT601", "FQT602", "FQT602"]


def test_a_script_compiles_and_joins(results):
    first, second = results["script", 0], results["script", 1]
    assert not np.array_equal(first["x"], second["x"])
    assert first["loss"] == second["loss"]
    assert np.array_equal(first["weight"], second["weight"])


@pytest.fixture(scope="module")
def artifact(compiled):
    return compiled(**TOGETHER)


EPOCHS = 40


def run(artifact, data, folder, *more, **how):
    """Trains with the command; ``--`` keeps torchrun from taking the options for its own."""
    checkpoint = folder / "c.safetensors"
    arguments = ["--data", data, "--checkpoint", checkpoint, "--best", folder / "best.safetensors", *more]
    return torchrun("-m", "--", "fqt_deploy.train", artifact, *arguments, "--epochs", EPOCHS, **how)


@pytest.fixture(scope="module")
def whole_run(artifact, digits_file, tmp_path_factory):
    """The checkpoint of a run that nothing has happened to."""
    folder = tmp_path_factory.mktemp("whole")
    log = folder / "log.csv"
    code, output = run(artifact, digits_file, folder, "--eval-data", digits_file, "--log", log)
    assert code == 0, output
    assert len(log.read_text().splitlines()) == 1 + EPOCHS
    assert output.count("accuracy") >= EPOCHS
    return folder / "c.safetensors"


@pytest.mark.thorough
def test_a_killed_process_ends_the_run_which_starts_again(artifact, digits_file, whole_run, tmp_path):
    """A process is killed after the first epochs; torchrun starts both again, and the result is that of no kill."""
    process = run(artifact, digits_file, tmp_path, restarts=1, wait=False)
    checkpoint = tmp_path / "c.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.kill(workers_of(process.pid)[-1], signal.SIGKILL)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert "error[FQT603]" in output
    killed = load_file(checkpoint)
    for name, array in load_file(whole_run).items():
        assert np.array_equal(array, killed[name]), name


@pytest.mark.thorough
def test_another_number_of_processes_goes_on(artifact, digits_file, whole_run, tmp_path):
    """Two processes train epochs of six steps; one alone goes on with the next one, of twelve."""
    session = fqt_deploy.load(artifact)
    steps = 6 * EPOCHS
    place = json.loads(session.load_checkpoint(whole_run)["place"])
    assert place == {"step": steps, "epoch": EPOCHS, "samples": 0}
    checkpoint = tmp_path / "c.safetensors"
    checkpoint.write_bytes(whole_run.read_bytes())
    arguments = ["--data", digits_file, "--checkpoint", checkpoint, "--epochs", EPOCHS + 1, "--resume"]
    result = CliRunner().invoke(main, [str(artifact), *map(str, arguments)])
    assert result.exit_code == 0, result.output
    session.load_checkpoint(checkpoint)
    assert session.step_count == steps + 100 // BATCH


def test_a_step_for_several_processes_alone_computes_the_same(compiled, artifact, tmp_path):
    one, several = fqt_deploy.load(compiled(BATCH, 2 * BATCH, **PLAIN)), fqt_deploy.load(artifact)
    assert one.manifest.fingerprint != several.manifest.fingerprint
    for session, name in ((one, "one"), (several, "several")):
        train(session, None, tmp_path / name)
    first, second = np.load(tmp_path / "one.0.npz"), np.load(tmp_path / "several.0.npz")
    for name in first:
        if "running_var" in name:  # rounded once more, where it may be exchanged
            np.testing.assert_allclose(second[name], first[name], rtol=1e-6, err_msg=name)
        else:
            assert np.array_equal(first[name], second[name]), name


def test_what_the_runtime_is_called_for_is_no_kernel(artifact):
    session = fqt_deploy.load(artifact)
    x, y = next(batches(BATCH))
    with KernelClock(session) as clock:
        session.step(x, y)
        assert len(clock.take().seconds) == len(session.manifest.kernels)


class _Calls(list):
    """An exchange that notes what it is called for."""

    def share(self, number):
        pass

    def start(self, index, gradient, kept=None):
        self.append(("start", index))

    def finish(self, index):
        self.append(("finish", index))


def test_gradients_are_awaited_in_the_order_in_which_they_leave(compiled):
    """What came first is updated while the last gradients travel."""
    session = fqt_deploy.load(compiled(recipe="none", exclude=("*",), optimizer="adam", ema=0.9, distributed="fp32"))
    calls = session.functions.exchange = _Calls()
    session.step(*next(batches(BATCH)))
    count = len(calls) // 2
    assert calls == [("start", index) for index in range(count)] + [("finish", index) for index in range(count)]


def test_without_torch_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setitem(sys.modules, "fqt_deploy.distributed", None)
    with pytest.raises(FqtError, match=re.escape("needs PyTorch")) as raised, _group():
        pass
    assert raised.value.code == "FQT604"
