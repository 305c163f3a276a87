"""Sums of 8-bit codes over more positions than 32 bits hold are taken of digits, and the graph computes the same."""

import torch
from torch import nn

from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.settings import options_of


def test_a_large_batch_trains_with_8_bits_of_gradients_and_activations():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    x, y = torch.randn(33_056, 32), torch.arange(33_056) % 4
    source = ModelSource(model, nn.functional.cross_entropy, (x, y))
    lowered = lower_model(source, options_of({"preset": "close", "verify": "numerics"}))
    (check,) = [check for check in lowered.pass_checks if check.name == "lower-to-1bit"]
    assert check.ok
    assert check.compared > 0
    assert len(lowered.train.calls(torch.ops.fqt.level_weight_grad.default)) == 2
