"""Two processes: one's gradients, the mean of both; what they must have in common, and when one of them dies."""

import json
import os
import re
import signal
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

import fqt_deploy
from fqt_deploy.core.diagnostics import FqtError
from tests.distributed.conftest import BATCH, PLAIN, WORKER, torchrun
from tests.distributed.worker import STEPS, train
from tools.kill_ranks import workers_of

CODED = {**PLAIN, "recipe": "scq", "exclude": ("0", "5"), "distributed": "4-bit"}


@pytest.fixture(scope="module")
def results(compiled, tmp_path_factory):
    """What two processes found: by name of the job and number of the process."""
    out = tmp_path_factory.mktemp("results") / "r"
    plain, coded, alone = compiled(**PLAIN, distributed="fp32"), compiled(**CODED), compiled(**PLAIN)
    code, output = torchrun(WORKER, plain, coded, alone, out)
    assert code == 0, output
    return {
        (job, rank): dict(np.load(f"{out}.{job}.{rank}.npz"))
        for job in ("plain", "coded", "codes", "script")
        for rank in (0, 1)
    }


def test_the_mean_of_gradients_is_that_of_the_whole_batch(results, compiled, tmp_path):
    session = fqt_deploy.load(compiled(2 * BATCH, **PLAIN))
    session.seed = 7
    train(session, None, tmp_path / "whole")
    whole, half = dict(np.load(tmp_path / "whole.0.npz")), results["plain", 0]
    names = [name for name in whole if "|" in name]
    assert {"grad_sum|0.weight", "ema|5.weight", "sgd_momentum|2.bias"} <= set(names)
    for name in ("losses", *names):
        np.testing.assert_allclose(half[name], whole[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_both_processes_have_the_same_state_and_draws_of_their_own(results):
    for job in ("plain", "coded"):
        first, second = results[job, 0], results[job, 1]
        assert first["seed"] != second["seed"]
        for name in first.keys() - {"seed"}:
            assert np.array_equal(first[name], second[name]), name


def test_codes_are_an_eighth_of_the_bytes_and_train(results):
    plain, coded = results["plain", 0], results["coded", 0]
    small = 4 * (16 * 9 + 16 + 32 + 10)  # the first filter and the biases stay in float32
    codes = 2 * (16 * (4 + 144 // 2) + 5 * (4 + 2048 // 2))  # half of the channels, there and back
    assert coded["sent"] == STEPS * (small + codes)
    assert plain["sent"] == STEPS * (small + 4 * (32 * 144 + 10 * 2048))
    assert codes / (4 * (32 * 144 + 10 * 2048)) == pytest.approx(1 / 8, rel=0.02)
    assert np.isfinite(coded["losses"]).all()
    assert not np.array_equal(plain["param|2.weight"], coded["param|2.weight"])


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
    return compiled(**PLAIN, distributed="fp32")


def run(artifact, data, folder, *more, **how):
    """Trains with the command."""
    checkpoint = folder / "c.safetensors"
    arguments = ["--data", data, "--checkpoint", checkpoint, "--best", folder / "best.safetensors", *more]
    return torchrun("-m", "fqt_deploy.train", artifact, *arguments, **how)


def test_a_killed_process_ends_the_run_which_starts_again(artifact, digits_file, tmp_path):
    """A process is killed in the third epoch; torchrun starts both again, and the result is that of no kill."""
    log = tmp_path / "log.csv"
    process = run(artifact, digits_file, tmp_path, "--epochs", "400", "--log", log, restarts=1, wait=False)
    checkpoint = tmp_path / "c.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    victim = workers_of(process.pid)[-1]
    os.kill(victim, signal.SIGKILL)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert "error[FQT603]" in output
    killed = load_file(checkpoint)
    other = tmp_path / "other"
    other.mkdir()
    code, output = run(artifact, digits_file, other, "--epochs", "400")
    assert code == 0, output
    for name, array in load_file(other / "c.safetensors").items():
        assert np.array_equal(array, killed[name]), name


def test_another_number_of_processes_goes_on(artifact, digits_file, tmp_path):
    """Two processes train two epochs of six steps; one alone goes on with the third of twelve."""
    code, output = run(artifact, digits_file, tmp_path, "--epochs", "2")
    assert code == 0, output
    session = fqt_deploy.load(artifact)
    place = json.loads(session.load_checkpoint(tmp_path / "c.safetensors")["place"])
    assert place == {"step": 12, "epoch": 2, "samples": 0}
    assert session.step_count == 12
    data = dict(np.load(digits_file))
    changed = tmp_path / "changed.npz"
    np.savez(changed, x=data["x"], y=9 - data["y"])
    from click.testing import CliRunner

    from fqt_deploy.cli_train import main

    arguments = ["--data", digits_file, "--checkpoint", tmp_path / "c.safetensors", "--epochs", "3", "--resume"]
    result = CliRunner().invoke(main, [str(artifact), *map(str, arguments)])
    assert result.exit_code == 0, result.output
    session.load_checkpoint(tmp_path / "c.safetensors")
    assert session.step_count == 12 + 100 // BATCH


def test_a_step_for_several_processes_alone_computes_the_same(compiled, artifact, tmp_path):
    one, several = fqt_deploy.load(compiled(**PLAIN)), fqt_deploy.load(artifact)
    assert one.manifest.fingerprint != several.manifest.fingerprint
    for session, name in ((one, "one"), (several, "several")):
        train(session, None, tmp_path / name)
    first, second = np.load(tmp_path / "one.0.npz"), np.load(tmp_path / "several.0.npz")
    for name in first:
        assert np.array_equal(first[name], second[name]), name


def test_without_torch_the_command_says_what_to_install(artifact, digits_file, monkeypatch):
    import sys

    from fqt_deploy.training_run import _group

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setitem(sys.modules, "fqt_deploy.distributed", None)
    with pytest.raises(FqtError, match=re.escape("needs PyTorch")) as raised, _group():
        pass
    assert raised.value.code == "FQT604"
