"""One step of recipe ``none`` is what eager PyTorch fake quantization computes."""

import dataclasses
import json

import pytest
import torch

from tools import compare_eager
from tools.compare_eager import Comparison, Sign, compare, main
from tools.examples import load_example


@pytest.mark.thorough
def test_the_digits_network_agrees(digits_source):
    found = compare(digits_source, activation_bits=1, activation_grid="sign")
    assert found.ok, found
    assert len(found.cosines) == len(list(digits_source.module.parameters()))
    assert list(found.flips) == ["features.3", "features.7", "features.10"]
    assert sum(flipped for flipped, _ in found.flips.values()) <= 3


@pytest.mark.thorough
@pytest.mark.parametrize("bits", [2, 4])
def test_activations_of_several_bits_agree(digits_source, bits):
    found = compare(digits_source, activation_bits=bits)
    assert found.ok, found
    assert sum(flipped for flipped, _ in found.flips.values()) <= 3


@pytest.mark.thorough
@pytest.mark.parametrize(("weights", "activations"), [(2, 4), (4, 2), (2, 1)])
def test_weights_of_several_bits_agree(digits_source, weights, activations):
    found = compare(digits_source, activation_bits=activations, weight_bits=weights)
    assert found.ok, found
    assert sum(flipped for flipped, _ in found.flips.values()) <= 3


@pytest.mark.thorough
def test_one_bit_activations_on_a_fitted_grid_agree(digits_source):
    found = compare(digits_source, activation_bits=1, activation_grid="fitted")
    assert found.ok, found
    assert sum(flipped for flipped, _ in found.flips.values()) <= 3


@pytest.mark.slow
@pytest.mark.parametrize(("model", "batch"), [("vgg16", 32), ("resnet18", 16), ("mixer", 16)])
def test_the_large_networks_agree(model, batch):
    torch.manual_seed(0)
    found = compare(load_example(model, batch))
    assert found.loss_error <= 1e-3
    assert {n: c for n, c in found.cosines.items() if c < 0.999} == {}
    assert found.ok, found


def test_disagreement_is_an_error(monkeypatch, capsys, digits_source):
    good = Comparison(1e-7, {"w": 1.0, "b": 0.9999}, {"c": 1e-8}, {"l": (1, 9)})
    assert good.ok
    bad = dataclasses.replace(good, cosines={"w": 0.998})
    for found, code in ((good, 0), (bad, 1), (dataclasses.replace(good, loss_error=0.01), 1)):
        monkeypatch.setattr(compare_eager, "compare", lambda *_, found=found: found)
        monkeypatch.setattr("sys.argv", ["compare_eager", "--batch", "2"])
        assert main() == code
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (summary["ok"], summary["flipped_signs"], summary["signs"]) == (code == 0, 1, 9)
    assert not dataclasses.replace(good, zeros={"c": 1e-3}).ok


def test_signs_of_zero_are_negative_and_gradients_pass_below_one():
    x = torch.tensor([-2.0, -0.5, -0.0, 0.0, 0.5, 1.0], requires_grad=True)
    y = Sign.apply(x)
    y.sum().backward()
    assert y.tolist() == [-1, -1, -1, -1, 1, 1]
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]
