"""PyTorch's times: whole steps by mode, and every convolution, linear layer and attention by direction."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fqt_deploy.capture.load_model import ModelSource, load_model
from fqt_deploy.profiling.torch_times import torch_times

EXAMPLES = Path(__file__).parents[2] / "examples"
DIRECTIONS = ("forward", "input_grad", "weight_grad")


def test_layers_and_steps():
    times = torch_times(load_model(EXAMPLES / "digits_cnn.py", batch=8), ("fp32",))
    assert set(times.steps) == {"fp32"}
    assert times.steps["fp32"] > 0
    layers = ("features.0", "features.3", "features.7", "features.10", "classifier")
    assert set(times.layers["fp32"]) == {f"{layer} {d}" for layer in layers for d in DIRECTIONS}
    assert all(seconds > 0 for seconds in times.layers["fp32"].values())
    assert times.layer("fp32", "classifier", "forward") > 0
    assert times.layer("bf16", "classifier", "forward") is None


@pytest.mark.slow
def test_the_whole_step_through_torch_compile():
    """It counts as a step, not by layer, and what it computes is the model's own loss."""
    torch.manual_seed(0)
    source = ModelSource(nn.Linear(4, 3), nn.functional.cross_entropy, (torch.randn(5, 4), torch.arange(5) % 3))
    before = source.module.weight.detach().clone()
    times = torch_times(source, ("compile",))
    assert times.steps["compile"] > 0
    assert times.layers == {}
    assert not torch.equal(before, source.module.weight)  # it trains


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(16, 16))
        self.same = nn.Conv2d(1, 1, 3, padding="same")

    def forward(self, x):
        x = self.inner(self.same(x[:, None])[:, 0])
        return nn.functional.scaled_dot_product_attention(x, x, x).mean(1)


@pytest.mark.parametrize("mode", ["fp32", "bf16"])
def test_attention_belongs_to_the_module_that_calls_it(mode):
    torch.manual_seed(0)
    source = ModelSource(
        nn.Sequential(Attending()), nn.functional.cross_entropy, (torch.randn(4, 8, 16), torch.arange(4))
    )
    layers = torch_times(source, (mode,)).layers[mode]
    expected = {f"0.{layer} {d}" for layer in ("inner.0", "same") for d in DIRECTIONS}
    assert set(layers) == expected | {"0 forward", "0 backward"}
