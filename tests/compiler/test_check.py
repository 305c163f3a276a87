"""Checking a model: the same decisions as compiling it, and everything that is unsupported, at once."""

import json
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

import fqt_deploy
from fqt_deploy.compiler.check import check_model
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.compiler.describe import layer_decisions
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import CompileOptions


@pytest.mark.quick
@pytest.mark.parametrize(
    ("options", "binarized"), [(CompileOptions(), 3), (CompileOptions(recipe="none", exclude=("*",)), 0)]
)
def test_decisions_are_those_of_compiling(digits_source, options, binarized):
    report = check_model(digits_source, options)
    assert report.ok
    assert report.layers == layer_decisions(lower_model(digits_source, options).train)
    assert report.summary() == f"digits_cnn: {binarized} of {len(report.layers)} layers in 1 bit, the model compiles"
    assert len(report.layers) > 3


class Unsupported(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.plain = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.pool, self.head = nn.MaxPool2d(2, return_indices=True), nn.Linear(64 * 4 * 4, 10)

    def forward(self, x):
        x, places = self.pool(torch.relu(self.plain(self.first(x))))
        x = x + places
        x = torch.logcumsumexp(x.flatten(1), 1) if self.training else torch.lgamma(x.flatten(1))
        return self.head(x)


def test_all_that_is_unsupported_is_found_in_both_modes():
    x, y = torch.randn(4, 3, 8, 8), torch.arange(4)
    report = fqt_deploy.check(Unsupported(), example_inputs=(x, y))
    assert not report.ok
    assert [(error.code, error.module, error.message) for error in report.errors] == [
        ("FQT203", "pool", "cannot lower pooling whose indices are used"),
        ("FQT201", "", "aten.logcumsumexp.default (forward) cannot be lowered"),
        ("FQT201", "", "aten.lgamma.default (forward) cannot be lowered"),
    ]
    texts = [error.location.text.strip() for error in report.errors]
    assert texts[0] == "x, places = self.pool(torch.relu(self.plain(self.first(x))))"
    assert "torch.logcumsumexp" in texts[1]
    assert all(error.hint for error in report.errors)
    assert [(layer.path, layer.decision) for layer in report.layers] == [
        ("first", "fp32"), ("plain", "1-bit"), ("head", "fp32")
    ]  # fmt: skip
    assert report.summary() == "Unsupported: 1 of 3 layers in 1 bit, 3 error(s)"


def test_the_report_as_json():
    report = fqt_deploy.check(Unsupported(), example_inputs=(torch.randn(4, 3, 8, 8), torch.arange(4)))
    found = json.loads(report.to_json())
    assert found.keys() == {"name", "ok", "layers", "errors", "selection_note", "gradient_note", "notes"}
    assert found["ok"] is False
    assert found["layers"][0] == {
        "path": "first", "kind": "conv2d", "decision": "fp32",
        "reason": "a contraction over 27 elements is too short to gain", "source": report.layers[0].source,
            "activation_bits": 1, "weight_bits": 1,
    }  # fmt: skip
    assert found["errors"][0] == {
        "code": "FQT203", "message": "cannot lower pooling whose indices are used", "module": "pool",
        "source": str(report.errors[0].location), "text": report.errors[0].location.text.strip(),
        "help": "leave return_indices=False; in the place of MaxUnpool use interpolate or ConvTranspose2d",
    }  # fmt: skip


class TwoHeads(nn.Module):
    """Its first layer has a gradient that bypasses the classifier's input."""

    def __init__(self):
        super().__init__()
        self.body, self.side, self.head = nn.Linear(64, 64), nn.Linear(64, 4), nn.Linear(64, 4)

    def forward(self, x):
        x = torch.relu(self.body(x))
        return self.head(torch.relu(x)) + self.side(x).mean(1, keepdim=True)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(64, 4)

    def forward(self, x):
        return self.body(x) if x.sum() > 0 else self.body(-x)


def test_what_does_not_fit_recipe_or_options_is_in_the_report():
    inputs = torch.randn(8, 64), torch.arange(8) % 4
    report = fqt_deploy.check(TwoHeads(), example_inputs=inputs, agp="once")
    assert [error.code for error in report.errors] == ["FQT205"]
    assert fqt_deploy.check(TwoHeads(), example_inputs=inputs).selection_note
    report = fqt_deploy.check(TwoHeads(), example_inputs=inputs, exclude="stem.*")
    assert [error.code for error in report.errors] == ["FQT204"]


def test_what_cannot_be_traced_is_in_the_report():
    report = fqt_deploy.check(Branching(), example_inputs=(torch.randn(8, 64), torch.arange(8) % 4))
    assert [error.code for error in report.errors] == ["FQT104"]
    assert report.layers == ()


def test_wrong_arguments_are_raised():
    with pytest.raises(FqtError, match="FQT202"):
        fqt_deploy.check(nn.Linear(4, 2), example_inputs=(torch.randn(8, 4), torch.arange(8) % 2), agp="all")
    with pytest.raises(FqtError, match="FQT101"):
        fqt_deploy.check("a model", example_inputs=(torch.randn(8, 4), torch.arange(8) % 2))


def test_checking_imports_no_code_generation():
    program = (
        "import atexit, sys\n"
        "from fqt_deploy.cli import main\n"
        "names = {'tvm', 'tvm_ffi', 'onnx', 'fqt_deploy.codegen'}\n"
        "atexit.register(lambda: print(names & {*sys.modules}))\n"
        "main(['examples/digits_cnn.py', '--check'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the model compiles" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


def test_models_are_checked_in_several_threads():
    """Streams, PyTorch's functions and the generators' states are what they were; a thread beside them prints."""

    def check(width: int) -> None:
        model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 4))
        report = fqt_deploy.check(model, example_inputs=(torch.randn(8, 64), torch.arange(8) % 4))
        found[width] = [layer.path for layer in report.layers]

    found: dict[int, list[str]] = {}
    before = sys.stdout, sys.stderr, nn.Module.__setattr__, torch.autograd.Function.apply
    threads = [threading.Thread(target=check, args=(width,)) for width in (48, 64, 96)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {width: ["0", "2"] for width in (48, 64, 96)}
    assert before == (sys.stdout, sys.stderr, nn.Module.__setattr__, torch.autograd.Function.apply)
