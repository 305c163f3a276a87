"""The command fqt-export: weights of artifacts and checkpoints for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file

import fqt_deploy
from fqt_deploy.capture.load_model import load_model
from fqt_deploy.cli_export import main
from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.core.optimizer import SGD
from fqt_deploy.core.options import CompileOptions

MODEL = """\
import torch
from torch import nn

def build_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Linear(32, 4)
    )

def example_inputs():
    return torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(5) % 4
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: Any) -> tuple[Path, Path, Any]:
    """The model file, its artifact with a checkpoint, and the session that wrote that."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "net.py").write_text(MODEL)
    source = load_model(folder / "net.py")
    options = CompileOptions(recipe="none", include=("3",), optimizer=SGD(lr=0.1, ema=0.5))
    compile_model(source, options, folder / "net.fqt")
    session = fqt_deploy.load(folder / "net.fqt")
    for _ in range(3):
        session.step(*source.example_inputs)
    session.save_checkpoint(folder / "net.fqt" / "checkpoint.safetensors")
    return folder / "net.py", folder / "net.fqt", session


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_safetensors_and_pt_hold_the_state_dict(trained: Any, tmp_path: Path) -> None:
    _, artifact, session = trained
    for name, read in (("w.safetensors", load_file), ("w.pt", torch.load)):
        assert run(artifact, "--checkpoint", "-o", tmp_path / name).exit_code == 0
        found = read(tmp_path / name)
        assert found.keys() == session.state_dict().keys()
        assert all(np.array_equal(np.asarray(found[n]), array) for n, array in session.state_dict().items())
    with safetensors.safe_open(tmp_path / "w.safetensors", "np") as file:
        metadata = file.metadata()
    assert json.loads(metadata["fqt_1bit_layers"]) == ["3"]
    assert "latent" in metadata["fqt_note"]


def test_the_artifact_itself_and_averages(trained: Any, tmp_path: Path) -> None:
    model, artifact, session = trained
    assert run(artifact, "-o", tmp_path / "w.safetensors").exit_code == 0
    start = load_model(model).module.state_dict()
    assert all(np.array_equal(a, start[n].numpy()) for n, a in load_file(tmp_path / "w.safetensors").items())
    given = artifact / "checkpoint.safetensors"
    assert run(artifact, "--checkpoint", given, "--averages", "-o", tmp_path / "w.safetensors").exit_code == 0
    session.averaged = True
    averages = session.state_dict()
    session.averaged = False
    assert all(np.array_equal(a, averages[n]) for n, a in load_file(tmp_path / "w.safetensors").items())
    assert not np.array_equal(averages["1.weight"], session.state_dict()["1.weight"])


@pytest.mark.thorough
def test_onnx_predicts_as_the_session(trained: Any, tmp_path: Path) -> None:
    model, artifact, session = trained
    result = run(artifact, "--checkpoint", "--model", model, "-o", tmp_path / "w.onnx")
    assert result.exit_code == 0, result.output
    exported = onnxruntime.InferenceSession(str(tmp_path / "w.onnx"))
    assert exported.get_inputs()[0].shape == ["batch", 1, 4, 4]
    for samples in (1, 5, 13):
        x = np.random.default_rng(0).standard_normal((samples, 1, 4, 4), dtype=np.float32)
        (logits,) = exported.run(["logits"], {"x": x})
        np.testing.assert_allclose(logits, session.predict(x), rtol=1e-5, atol=1e-5)
    stored = {tuple(t.dims): t.data_type for t in onnx.load(tmp_path / "w.onnx").graph.initializer}
    assert (32, 32) not in {shape for shape, kind in stored.items() if kind == onnx.TensorProto.FLOAT}
    assert onnx.TensorProto.FLOAT in {kind for shape, kind in stored.items() if sorted(shape) == [16, 32]}


@pytest.mark.thorough
def test_onnx_with_activations_of_several_bits(trained: Any, tmp_path: Path) -> None:
    """The grids are those of the artifact, whatever the trained weights would ask for."""
    model = trained[0]
    source = load_model(model)
    options = CompileOptions(recipe="none", include=("3",), optimizer=SGD(lr=20.0), activation_bits=3)
    compile_model(source, options, tmp_path / "net.fqt")
    session = fqt_deploy.load(tmp_path / "net.fqt")
    for _ in range(5):
        session.step(*source.example_inputs)
    session.save_checkpoint(tmp_path / "net.fqt" / "checkpoint.safetensors")
    result = run(tmp_path / "net.fqt", "--checkpoint", "--model", model, "-o", tmp_path / "w.onnx")
    assert result.exit_code == 0, result.output
    exported = onnxruntime.InferenceSession(str(tmp_path / "w.onnx"))
    for samples in (1, 5, 13):
        x = np.random.default_rng(0).standard_normal((samples, 1, 4, 4), dtype=np.float32)
        (logits,) = exported.run(["logits"], {"x": x})
        np.testing.assert_allclose(logits, session.predict(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "w.txt"], "FQT202"),
        (["-o", "w.onnx"], "give the model file: --model model.py"),
        (["--checkpoint", "nowhere.safetensors", "-o", "w.pt"], "FQT502"),
    ],
)
def test_mistakes(trained: Any, tmp_path: Path, monkeypatch: Any, arguments: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(trained[1], *arguments)
    assert result.exit_code == 1
    assert said in result.output
    assert list(tmp_path.iterdir()) == []


def test_another_model_is_refused(trained: Any, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(MODEL.replace("nn.Linear(16, 32)", "nn.Linear(16, 32, bias=False)"))
    result = run(trained[1], "--model", tmp_path / "other.py", "-o", tmp_path / "w.onnx")
    assert "FQT504" in result.output
    assert run(tmp_path, "-o", tmp_path / "w.pt").exit_code == 1
