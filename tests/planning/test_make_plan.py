"""Plans: the choice under a budget, and the whole of it, from a model to the same step by hand."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import fqt_deploy
from fqt_deploy.cli import main as compile_command
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.planning import make_plan as planning
from fqt_deploy.planning import step_times
from fqt_deploy.planning.make_plan import _chosen, _points
from fqt_deploy.planning.plan import Budget, PlannedLayer
from tests.planning.plans import a_plan

MODEL = """
import torch

def build_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))

def example_inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 64, generator=generator), torch.arange(16) % 4
"""


@pytest.mark.parametrize("share", [0.7, 0.8, 1.0, 1.3, 4.0])
def test_the_least_noise_in_the_time(share):
    plan = a_plan()
    chosen = _chosen(plan.frontier, plan.asked, Budget(share))
    assert chosen.seconds <= share * plan.asked.seconds
    assert not [p for p in plan.frontier if p.seconds <= share * plan.asked.seconds and p.noise < chosen.noise]
    assert share < 1 or chosen.noise <= plan.asked.noise


def test_the_least_time_with_the_noise():
    plan = a_plan()
    chosen = _chosen(plan.frontier, plan.asked, Budget(None, 2.0))
    assert chosen.noise <= 2 * plan.asked.noise
    assert chosen.seconds < plan.asked.seconds
    assert _chosen(plan.frontier, plan.asked, Budget(None, 0.0)).choices == (None, None, None)


def test_the_step_asked_for_is_within_its_own_time():
    """Though a choice with less noise takes as long but for a part of the range of times that is rounded away."""
    seconds = [{None: 1.0, 2: 0.0010001, 1: 0.001}, {None: 1.0, 2: 0.5, 1: 0.1}]
    noise = {None: 0.0, 2: 0.1, 1: 0.2}
    layers = [PlannedLayer(path, own, noise) for path, own in zip("ab", seconds, strict=True)]
    points, asked = _points(layers, {"a": 1, "b": 1}, 0.2)
    assert _chosen(points, asked, Budget(1.0)) == asked
    assert {point.choices for point in points} >= {(1, 1), (2, 1)}


def test_a_budget_that_no_plan_keeps():
    plan = a_plan()
    with pytest.raises(FqtError, match=r"no plan keeps within 0\.1 of the time") as caught:
        _chosen(plan.frontier, plan.asked, Budget(0.1))
    assert caught.value.code == "FQT202"
    least = float(caught.value.hint.rpartition(" ")[2])
    assert _chosen(plan.frontier, plan.asked, Budget(least)) == plan.frontier[0]


def test_a_plan_that_takes_longer_than_predicted_is_chosen_again(monkeypatch):
    """Half of what a plan takes more than the step asked for was not predicted."""
    plan = a_plan()
    planner = planning._Planner(None, CompileOptions(), Path(), lambda _: None)
    seen = []

    def verified(asked, choices):
        point = next(p for p in plan.frontier if p.choices == tuple(choices.values()))
        seen.append(point)
        more = point.seconds - plan.asked.seconds
        return {"asked for": plan.asked.seconds, "chosen": plan.asked.seconds + 1.5 * more, "fp32": 1.0}, None

    monkeypatch.setattr(planner, "_verified", verified)
    paths = [layer.path for layer in plan.layers]
    chosen, measured, _ = planner._verified_choice(plan.frontier, plan.asked, paths, Budget(1.3))
    assert len(seen) > 1
    assert chosen == seen[-1]
    assert all(b.seconds < a.seconds for a, b in itertools.pairwise(seen))
    assert measured["chosen"] <= 1.3 * planning.WITHIN * plan.asked.seconds


def run(*arguments):
    return CliRunner().invoke(compile_command, [str(each) for each in arguments])


def test_from_a_model_to_the_same_step_by_hand(model_file, tmp_path, monkeypatch):
    """``--plan`` writes a file, which gives the step that options give by hand, and may be edited."""
    monkeypatch.setenv("FQT_KERNEL_CACHE", "64")
    monkeypatch.setenv("FQT_BUILD_CACHE", "64")
    monkeypatch.setattr(step_times, "ROUNDS", 1)
    monkeypatch.setattr(step_times, "_LEAST_S", 0.0)
    monkeypatch.chdir(tmp_path)
    model = model_file(MODEL)
    result = run(model, "--plan", "--plan-noise", "0", "--plan-bits", "4", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [(layer["path"], [*layer["noise"]]) for layer in found["layers"]] == [("0", ["fp32", "4 bits"])]
    assert found["chosen"]["choices"] == ["fp32"]
    assert found["chosen"]["noise"] == found["measured_noise"]["chosen"] == 0
    path = tmp_path / "model.plan.toml"
    assert losses(model, "--plan-file", path) == losses(model, "--exclude", "0")
    text = path.read_text()
    assert '"0" = "fp32"' in text
    path.write_text(text.replace('"0" = "fp32"', '"0" = [1, 2]'))
    checked = json.loads(run(model, "--check", "--json", "--plan-file", path).stdout)
    first = checked["layers"][0]
    assert (first["decision"], first["activation_bits"]) == ("1-bit", 2)


def losses(model, *options):
    """The fingerprint of a compiled step, and the losses of five of its steps."""
    result = run(model, *options, "-o", "step.fqt")
    assert result.exit_code == 0, result.output
    session = fqt_deploy.load("step.fqt")
    generator = np.random.default_rng(0)
    x = generator.standard_normal((16, 64)).astype(np.float32)
    return session.manifest.fingerprint, [session.step(x, np.arange(16) % 4) for _ in range(5)]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--plan", "--exclude", "*"), "FQT202", "there is nothing to plan"),
        (("--plan", "--target", "cuda"), "FQT202", "--plan times steps for the CPU"),
        (("--plan", "--target", "aarch64"), "FQT402", "cannot be timed on this machine"),
        (("--plan", "--recipe", "psq-8", "--plan-grad-bits", "2"), "FQT202", "have no bits to choose"),
        (("--plan", "--check"), "FQT202", "--plan compiles and checks nothing"),
        (("--plan", "--emit", "onnx"), "FQT202", "--plan compiles and checks nothing"),
        (("--plan-time", "0.8"), "FQT202", "add --plan"),
        (("--plan-bits", "4"), "FQT202", "add --plan"),
        (("--plan", "--plan-bits", "5"), "FQT202", "plan_bits is"),
        (("--plan", "--plan-time", "0.8", "--plan-noise", "1"), "FQT202", "a plan has one bound"),
        (("--plan", "--plan-time", "-1"), "FQT202", "plan_time is -1.0"),
        (("--json",), "FQT202", "add --check or --plan"),
        (("--plan", "-o", "."), "FQT508", "is no plan"),
    ],
)
def test_refusals(options, code, said, model_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(model_file(MODEL), *options)
    assert result.exit_code == 1, result.output
    assert f"error[{code}]" in result.output
    assert said in result.output
    assert not list(tmp_path.glob("*.toml"))
