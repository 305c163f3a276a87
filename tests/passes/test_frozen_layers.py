"""Layers whose weights are frozen stay in fp32: pretrained weights would not get used to 1 bit."""

import numpy as np
import pytest
import torch
from torch import nn

import fqt_deploy


class Adapted(nn.Module):
    """A pretrained layer with an adapter of low rank beside it, as LoRA has it, and a new head."""

    def __init__(self):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(64, 64), nn.Linear(64, 16, bias=False), nn.Linear(16, 64, bias=False)
        self.norm, self.wide, self.head = nn.LayerNorm(64), nn.Linear(64, 64), nn.Linear(64, 4)
        self.base.requires_grad_(False)
        self.wide.requires_grad_(False)

    def forward(self, x):
        x = self.base(x) + self.up(self.down(x))
        return self.head(torch.relu(self.wide(self.norm(x))))


def batch():
    g = torch.Generator().manual_seed(0)
    return torch.randn(16, 64, generator=g), torch.randint(0, 4, (16,), generator=g)


def decisions(model, **settings):
    report = fqt_deploy.check(model, example_inputs=batch(), **settings)
    return {layer.path: layer.decision for layer in report.layers}, report


def test_frozen_layers_stay_in_fp32_whether_gradients_pass_them_or_not():
    found, report = decisions(Adapted())
    assert found == {"base": "fp32", "down": "1-bit", "up": "fp32", "wide": "fp32", "head": "fp32"}
    assert {layer.path for layer in report.layers if "frozen" in layer.reason} == {"base", "wide"}
    assert [note for note in report.notes if "--frozen" in note] == [
        "2 layers stay in fp32 because their weights are frozen; "
        "--frozen 1-bit is for weights that another step trains in 1 bit"
    ]


@pytest.mark.parametrize("settings", [{"frozen": "1-bit"}, {"include": ("base", "wide", "down")}])
def test_and_run_in_1_bit_where_that_is_asked_for(settings):
    found, report = decisions(Adapted(), **settings)
    assert found == {"base": "1-bit", "down": "1-bit", "up": "fp32", "wide": "1-bit", "head": "fp32"}
    assert not any("--frozen" in note for note in report.notes)


@pytest.mark.parametrize("trained", ["bias", "norm"])
def test_also_where_no_weight_of_a_layer_is_trained(trained):
    """Biases alone, as BitFit has it, or the scales and shifts of norms."""
    model = Adapted()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    found, report = decisions(model)
    assert set(found.values()) == {"fp32"}
    assert {layer.path for layer in report.layers if "frozen" in layer.reason} == {"base", "down", "wide"}
    assert decisions(model, frozen="1-bit")[0]["wide"] == "1-bit"


def test_what_the_globs_and_the_rules_leave_in_fp32_is_not_blamed_on_frozen_weights():
    _, report = decisions(Adapted(), exclude=("base",))
    assert [note for note in report.notes if "frozen" in note and "layer" in note] == [
        "1 layer stays in fp32 because its weights are frozen; "
        "--frozen 1-bit is for weights that another step trains in 1 bit"
    ]


def test_the_pretrained_part_computes_what_it_did():
    torch.manual_seed(0)
    model = Adapted()
    x, y = batch()
    with torch.no_grad():
        model.up.weight.zero_()  # as adapters begin
        expected = nn.functional.cross_entropy(model(x), y).item()
    step = fqt_deploy.compile(model, example_inputs=(x, y), lr=0.0)
    np.testing.assert_allclose(float(step(x, y)), expected, rtol=1e-5)
