"""The two commands from end to end, and what they say to mistakes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from fqt_deploy.cli import main as compile_command
from fqt_deploy.cli_train import main as train_command
from fqt_deploy.passes.pipelines import all_passes

EXAMPLES = Path(__file__).parents[2] / "examples"

MODEL = """
import torch
from torch import nn

def build_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

def example_inputs():
    return torch.randn(16, 1, 8, 8), torch.randint(0, 10, (16,))
"""

RUNNING = """
class Running(nn.Module):
    def forward(self, x):
        return torch.logcumsumexp(x, 1)
"""


def run(command, *arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlp")
    (folder / "mlp.py").write_text(MODEL)
    result = run(compile_command, folder / "mlp.py", "-o", folder / "mlp.fqt", "--verify", "numerics", "--time-passes")
    assert result.exit_code == 0, result.output
    assert "MISMATCH" not in result.output
    assert "lower-to-1bit" in result.output
    return folder / "mlp.fqt"


@pytest.fixture
def data(tmp_path, digits):
    images, labels = digits
    np.savez(tmp_path / "data.npz", x=images[:320].numpy(), y=labels[:320].numpy())
    return tmp_path / "data.npz"


def fails(result, code, *texts):
    assert result.exit_code == 1, result.output
    assert f"error[{code}]" in result.output
    assert "Traceback" not in result.output
    for text in texts:
        assert text in result.output


def test_training_and_resuming(artifact, data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    shutil.copytree(artifact, one)
    shutil.copytree(artifact, two)
    result = run(train_command, one, "--data", data, "--epochs", 2, "--eval-data", data)
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.output
    assert run(train_command, two, "--data", data, "--epochs", 1).exit_code == 0
    assert run(train_command, two, "--data", data, "--epochs", 2, "--resume").exit_code == 0
    states = [load_file(folder / "checkpoint.safetensors") for folder in (one, two)]
    assert states[0].keys() == states[1].keys()
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])


def test_a_checkpoint_is_not_overwritten_unasked(artifact, data, tmp_path):
    folder = tmp_path / "one"
    shutil.copytree(artifact, folder)
    checkpoint, command = folder / "checkpoint.safetensors", (train_command, folder, "--data", data)
    assert run(*command).exit_code == 0
    before = checkpoint.read_bytes()
    fails(run(*command, "--epochs", 2), "FQT508", "--resume", "--overwrite", "--checkpoint")
    assert checkpoint.read_bytes() == before
    fails(run(*command, "--resume", "--overwrite"), "FQT202", "--overwrite would replace")
    assert run(*command, "--checkpoint", tmp_path / "other").exit_code == 0
    assert checkpoint.read_bytes() == before
    assert run(*command, "--lr", 0.1, "--overwrite").exit_code == 0
    assert checkpoint.read_bytes() != before


def test_help_lists_passes_ops_and_targets():
    assert "build_model" in run(compile_command, "--help").output
    listed = [line.split("  ")[0] for line in run(compile_command, "--list-passes").output.splitlines()]
    listed = [place for place in listed if place]  # without the lines of options
    places = [place for places in listed[1:] for place in places.split(", ")]
    assert sorted(places, key=int) == [str(place) for place in range(1, len(all_passes()) + 1)]
    assert "insert-scq" in run(compile_command, "--list-passes").output
    assert "fqt.binary_conv2d" in run(compile_command, "--list-ops").output
    assert run(compile_command, "--list-targets").output.split() == ["cpu", "aarch64", "rpi5", "cuda"]


@pytest.mark.thorough
def test_dumped_ir_shows_every_pass(model_file, tmp_path):
    result = run(compile_command, model_file(MODEL), "-o", tmp_path / "m", "--dump-ir", tmp_path / "ir")
    assert result.exit_code == 0, result.output
    names = sorted(p.name for p in (tmp_path / "ir").iterdir())
    assert names[0] == "00-captured.fqtir"
    assert "fqt.level_conv2d" in (tmp_path / "ir" / names[-1]).read_text()


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (MODEL.replace("def build_model", "def make_model"), "FQT101", "build_model"),
        (MODEL.replace("torch.randn(16, 1", "torch.randn(8, 1"), "FQT103", "16"),
        (MODEL.replace("nn.Flatten(),", "nn.Flatten(), Running(),") + RUNNING, "FQT201", "model.py:13"),
        (MODEL.replace("nn.Linear(64, 10))", "nn.Linear(64, 10)).unknown"), "FQT101", "unknown"),
    ],
)
def test_mistakes_in_the_model_file(model_file, tmp_path, text, code, said):
    fails(run(compile_command, model_file(text), "-o", tmp_path / "m"), code, said)
    assert not (tmp_path / "m").exists()


def test_mistakes_in_options(model_file, tmp_path):
    path = model_file(MODEL)
    fails(run(compile_command, path, "-o", tmp_path / "m", "--exclude", "nothing.*"), "FQT204", "nothing.*")
    fails(run(compile_command, path, "-o", tmp_path / "m", "--target", "tpu"), "FQT401", "cpu")
    fails(run(compile_command, path, "-o", tmp_path / "m", "--mcpu", "z80"), "FQT402", "z80")
    fails(run(compile_command, path, "-o", tmp_path / "m", "--grad-bits", "1", "--grid", "zero"), "FQT202", "zero")
    fails(run(compile_command, tmp_path / "absent.py"), "FQT101", "absent.py")


@pytest.mark.thorough
def test_tiles_are_measured_once(tmp_path, model_file):
    log, model = tmp_path / "log.jsonl", model_file(MODEL)
    arguments = (model, "-o", tmp_path / "m.fqt", "--tune", "--tuning-log", log)
    first = run(compile_command, *arguments)
    assert first.exit_code == 0, first.output
    measured = log.read_text()
    assert ("measuring" in first.output) == bool(measured)
    second = run(compile_command, *arguments)
    assert second.exit_code == 0, second.output
    assert "measuring" not in second.output
    assert log.read_text() == measured


def test_tuning_is_refused_where_it_would_mean_nothing(tmp_path, model_file):
    model = model_file(MODEL)
    fails(run(compile_command, model, "--target", "rpi5", "--tune"), "FQT202", "measures on the machine it runs on")
    log = tmp_path / "log.jsonl"
    log.write_text("no log\n")
    fails(run(compile_command, model, "-o", tmp_path / "m.fqt", "--tuning-log", log), "FQT207", "log.jsonl:1")
    assert not (tmp_path / "m.fqt").exists()


def test_other_folders_are_never_overwritten(model_file, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    fails(run(compile_command, model_file(MODEL), "-o", tmp_path / "mine"), "FQT508")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_mistakes_in_data(artifact, tmp_path, digits):
    images, labels = (t[:32].numpy() for t in digits)
    cases = {
        "FQT510": {"x": images},
        "FQT507": {"x": images, "y": labels + 10},
        "FQT506": {"x": np.full_like(images, np.nan), "y": labels},
    }
    for code, arrays in cases.items():
        np.savez(tmp_path / "bad.npz", **arrays)
        fails(run(train_command, artifact, "--data", tmp_path / "bad.npz"), code)
    np.savez(tmp_path / "bad.npz", x=images[:, :, :4], y=labels)
    fails(run(train_command, artifact, "--data", tmp_path / "bad.npz"), "FQT510", "[32, 1, 4, 8]")
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    fails(run(train_command, artifact, "--data", tmp_path / "bad.npz"), "FQT510")


def test_damaged_artifacts_and_foreign_checkpoints(artifact, data, tmp_path):
    fails(run(train_command, tmp_path, "--data", data), "FQT501")
    broken = tmp_path / "broken"
    shutil.copytree(artifact, broken)
    (broken / "step.so").write_bytes(b"\x7fELF")
    fails(run(train_command, broken, "--data", data), "FQT502")
    other = tmp_path / "other"
    shutil.copytree(artifact, other)
    assert run(train_command, other, "--data", data).exit_code == 0
    checkpoint = load_file(other / "checkpoint.safetensors")
    save_file(checkpoint, other / "checkpoint.safetensors", {"fqt_format": "1", "fqt_fingerprint": "0" * 64})
    fails(run(train_command, other, "--data", data, "--resume"), "FQT504")
    (other / "checkpoint.safetensors").write_bytes(b"short")
    fails(run(train_command, other, "--data", data, "--resume"), "FQT502")
