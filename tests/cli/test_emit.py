"""``fqt-compile --emit``: what is written where, and what is said to mistakes."""

import onnx
import pytest
from click.testing import CliRunner

from fqt_deploy.cli import main as compile_command

MODEL = """
import torch
from torch import nn

def build_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

def example_inputs():
    return torch.randn(16, 1, 8, 8), torch.randint(0, 10, (16,))
"""


def run(*arguments):
    return CliRunner().invoke(compile_command, [str(a) for a in arguments])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fails(result, code):
    assert result.exit_code == 1, result.output
    assert f"error[{code}]" in result.output
    assert "Traceback" not in result.output


def test_one_kind_goes_to_the_output_itself(model_file, tmp_path):
    (tmp_path / "out").mkdir()
    result = run(model_file(MODEL), "--emit", "onnx", "-o", tmp_path / "out" / "step.model")
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "out") == ["step.model"]
    assert "fp32" in result.output
    assert onnx.load(tmp_path / "out" / "step.model").graph.name == "train_step"


@pytest.mark.parametrize("given", ["m", "m.onnx", "m.fqt"])
def test_several_kinds_go_side_by_side(model_file, tmp_path, given):
    (tmp_path / "out").mkdir()
    result = run(
        model_file(MODEL), "--emit", "onnx", "--emit", "onnx-infer", "--seed", 3, "-o", tmp_path / "out" / given
    )
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "out") == ["m.infer.onnx", "m.onnx"]
    inference = onnx.load(tmp_path / "out" / "m.infer.onnx")
    assert [value.name for value in inference.graph.input] == ["x"]
    assert [value.name for value in inference.graph.output] == ["logits"]
    seed = next(t for t in onnx.load(tmp_path / "out" / "m.onnx").graph.initializer if t.name == "seed")
    assert onnx.numpy_helper.to_array(seed) == 3


@pytest.mark.parametrize("given", ["m.onnx", "m.step.onnx"])
def test_the_step_for_every_client_has_its_state_beside_it(model_file, tmp_path, given):
    (tmp_path / "out").mkdir()
    result = run(model_file(MODEL), "--emit", "onnx-step", "--seed", 3, "-o", tmp_path / "out" / given)
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "out") == sorted([given, "m.predict.onnx", "m.state.safetensors"])
    shown = "".join(result.output.split())  # long paths are wrapped
    assert all(name in shown for name in names(tmp_path / "out"))


def test_mistakes_leave_nothing_behind(model_file, tmp_path):
    path = model_file(MODEL)
    (tmp_path / "out").mkdir()
    fails(run(path, "--emit", "onnx", "-o", path / "m.onnx"), "FQT508")
    fails(run(path, "--emit", "onnx", "-o", tmp_path / "out"), "FQT508")
    fails(run(path, "--emit", "onnx", "--profile"), "FQT202")
    fails(run(path, "--emit", "tflite"), "FQT202")
    assert names(tmp_path / "out") == []


def test_what_float32_cannot_count_is_refused():
    """A sum that ONNX Runtime would round is an error, not a wrong result."""
    from fqt_deploy.ops.products.binary_conv2d import exact_below

    exact_below(2**24 - 1)
    with pytest.raises(ValueError, match="16777216"):
        exact_below(2**24)
