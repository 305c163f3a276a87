"""``fqt-compile --check``: what is said of a model, and that nothing is written."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fqt_deploy.cli import main as compile_command

EXAMPLES = Path(__file__).parents[2] / "examples"

MODEL = """
import torch
from torch import nn

def build_model():
    return nn.Sequential(
        nn.Conv2d(1, 64, 3), Places(), Places(), nn.Flatten(), nn.Linear(64, 10), Running()
    )

class Places(nn.Module):
    def forward(self, x):
        x, places = nn.functional.max_pool2d(x, 2, return_indices=True)
        return x + places

def example_inputs():
    return torch.randn(16, 1, 8, 8), torch.randint(0, 10, (16,))

class Running(nn.Module):
    def forward(self, x):
        return torch.logcumsumexp(x, 1)
"""


def run(*arguments):
    return CliRunner().invoke(compile_command, [str(a) for a in arguments])


def test_a_model_that_compiles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(EXAMPLES / "digits_cnn.py", "--check", "--batch", 8)
    assert result.exit_code == 0, result.output
    assert "the last linear layer stays in fp32" in result.output
    assert "layers in 1 bit, the model compiles" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("--check",), ("--recipe", "none")])
def test_everything_unsupported_is_told_at_once(model_file, tmp_path, monkeypatch, arguments):
    """By ``--check``, and by compiling too."""
    monkeypatch.chdir(tmp_path)
    result = run(model_file(MODEL), *arguments)
    assert result.exit_code == 1, result.output
    for text in (
        "pooling whose indices are used",
        "module 1",
        "module 2",
        "aten.logcumsumexp",
        "model.py:20",
    ):
        assert text in result.output
    assert result.output.count("= help: ") == result.output.count("error[") == 3
    assert "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["model.py"]


def test_json_is_all_that_is_printed(model_file, capfd):
    with pytest.raises(SystemExit) as ended:
        compile_command([str(model_file(MODEL)), "--check", "--json"])
    assert ended.value.code == 1
    found = json.loads(capfd.readouterr().out)
    assert [error["code"] for error in found["errors"]] == ["FQT203", "FQT203", "FQT201"]
    assert found["errors"][-1]["source"] == "model.py:20"


@pytest.mark.thorough
def test_quiet_prints_errors_alone(model_file):
    assert run(EXAMPLES / "digits_cnn.py", "--check", "--batch", 8, "--quiet").output == ""
    errors = run(model_file(MODEL), "--check", "-q").output
    assert errors.startswith("error[FQT203]: cannot lower pooling whose indices are used\n")
    assert "...\n" not in errors
    assert "layers in 1 bit" not in errors


def test_what_goes_with_checking_and_what_does_not(model_file):
    for arguments in (("--json",), ("--check", "--profile")):
        result = run(model_file(MODEL), *arguments)
        assert result.exit_code == 1
        assert "error[FQT202]" in result.output
