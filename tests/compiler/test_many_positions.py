"""Sums of 8-bit codes over more positions than 32 bits hold are taken of digits, and the step computes the same."""

import torch
from torch import nn

from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.settings import options_of


def test_a_large_batch_trains_with_8_bits_of_gradients_and_activations(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 4),
    )  # fmt: skip
    x, y = torch.randn(16, 3, 48, 48), torch.arange(16) % 4  # 36,864 positions
    source = ModelSource(model, nn.functional.cross_entropy, (x, y))
    result = compile_model(source, options_of({"preset": "close", "verify": "numerics"}), tmp_path / "step.fqt")
    assert result.verification is not None
    assert result.verification.ok
    products = [kernel for kernel in result.manifest.kernels if kernel.op == "level_weight_grad"]
    assert len(products) == 2
