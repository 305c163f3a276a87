"""Forty random models of small size; ``python -m tools.random_models`` tries hundreds, and compiles their kernels."""

import pytest
import torch
from torch import nn

from tools import random_models
from tools.random_models import Outcome, check, main, random_model


@pytest.mark.quick(2)
@pytest.mark.parametrize("seed", range(40))
def test_a_random_model_is_captured_and_lowered(seed):
    outcome = check(seed, kernels=False, numerics=seed < 5)
    assert outcome.kind == "ok", outcome


@pytest.mark.thorough
@pytest.mark.parametrize("seed", [41])
def test_a_random_model_compiles_to_what_pytorch_computes(seed):
    outcome = check(seed)
    assert outcome.kind == "ok", outcome


def test_seeds_give_the_same_model_again():
    first, again, other = random_model(5), random_model(5), random_model(6)
    assert str(first.module) == str(again.module) != str(other.module)
    assert torch.equal(first.example_inputs[0], again.example_inputs[0])


def test_what_differs_from_pytorch_is_found(monkeypatch, capsys):
    class Wrong:
        def step(self, x, y):
            return 7.0

        state_dict = predict = lambda self, *_: {}

    monkeypatch.setattr(random_models, "compile_model", lambda *_, **__: nn.Module())
    monkeypatch.setattr(nn.Module, "output", "", raising=False)
    monkeypatch.setattr(random_models.fqt_deploy, "load", lambda _: Wrong(), raising=False)
    assert check(3).kind == "mismatch"
    monkeypatch.setattr(random_models, "check", lambda seed, **_: Outcome(seed, "mismatch" if seed else "ok", "", 1.0))
    monkeypatch.setattr("sys.argv", ["random_models", "--seeds", "0:3"])
    assert main() == 1
    printed = capsys.readouterr().out
    assert "0: 1.0 s, ok\n1: 1.0 s, mismatch\n" in printed
    assert '"mismatch": 2' in printed
