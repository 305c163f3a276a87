"""Fine-tuning of mixtures: how they are spelled, and a short run of one."""

import json

import pytest
from safetensors.numpy import save_file

from fqt_deploy.planning.choices import CHOICES
from tools.accuracy.networks import NETWORKS, initial_state
from tools.plan_accuracy import main, mixture_of, random_mixtures

LAYERS = ["features.3", "features.7", "features.10"]


def test_mixtures_are_spelled_as_bits_or_as_plans(tmp_path):
    assert mixture_of("4", LAYERS) == dict.fromkeys(LAYERS, 4)
    assert mixture_of("fp32", LAYERS) == dict.fromkeys(LAYERS)
    path = tmp_path / "a.plan.toml"
    path.write_text('format = 1\n[layers]\n"features.7" = "fp32"\n"features.3" = [1, 8]\n"*" = [1, 2]\n')
    assert mixture_of(str(path), LAYERS) == {"features.3": 8, "features.7": None, "features.10": 2}


def test_random_mixtures_are_the_same_every_time():
    mixtures = random_mixtures(LAYERS, 6)
    assert mixtures == random_mixtures(LAYERS, 6)
    assert len(mixtures) == 6
    assert all([*mixture] == LAYERS and {*mixture.values()} <= {*CHOICES} for mixture in mixtures.values())
    assert None not in mixtures["random 0"].values()


@pytest.mark.thorough
def test_a_run_is_done_once_and_says_what_came_of_it(tmp_path):
    weights, results = tmp_path / "w.safetensors", tmp_path / "plans.jsonl"
    save_file(initial_state(NETWORKS["digits"], 5, 0), weights)
    arguments = ["--data", "digits", "--network", "digits", "--weights", str(weights), "--mixtures", "4"]
    arguments += ["--results", str(results), "--work", str(tmp_path)]
    for steps in (30, 30, 0):
        assert main([*arguments, "--steps", str(steps)]) == 0
    line, without = map(json.loads, results.read_text().splitlines())
    assert without["sum"] == line["sum"]
    assert "accuracy" not in without
    assert line["mixture"] == [4, 4, 4]
    assert 0 < line["weights"] <= line["sum"]
    assert line["last_loss"] < line["first_loss"]
    assert line["accuracy"] > 0.5


def test_mistakes_are_told(tmp_path, capsys):
    arguments = ["--data", str(tmp_path / "none"), "--network", "vgg6", "--weights", "w", "--steps", "1"]
    assert main([*arguments, "--results", str(tmp_path / "r")]) == 1
    assert "error[FQT103]" in capsys.readouterr().err
