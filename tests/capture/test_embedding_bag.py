"""Bags of tokens are those of PyTorch, with the same gradients, or are refused."""

import pytest
import torch
from torch import nn

from fqt_deploy.capture.load_model import load_model
from fqt_deploy.capture.replaced_functions import ReplacedFunctions
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import CompileOptions

TOKENS = torch.tensor([[1, 4, 4, 0], [2, 0, 0, 0], [0, 0, 0, 0], [5, 3, 2, 1]])


@pytest.mark.parametrize("padding", [None, 0, -1])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("weighted", [False, True])
def test_values_and_gradients(mode, padding, weighted):
    if weighted and mode != "sum":
        return
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(6, 5, mode=mode, padding_idx=padding)
    factors = torch.rand(4, 4, requires_grad=True) if weighted else None
    goal = torch.randn(4, 5)

    def run():
        y = bag(TOKENS, per_sample_weights=factors)
        return y, *torch.autograd.grad((y * goal).sum(), [bag.weight, *([factors] if weighted else [])])

    expected = run()
    with ReplacedFunctions():
        actual = run()
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


MODEL = """
import torch
from torch import nn


class Texts(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(500, 64, BAG)
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, tokens):
        return self.body(self.bag(tokens))


def build_model():
    return Texts()


def example_inputs():
    return torch.randint(0, 500, (16, 20)), torch.randint(0, 4, (16,))
"""


def test_a_model_of_bags_has_layers_in_one_bit(model_file):
    source = load_model(model_file(MODEL.replace("BAG", "padding_idx=0")))
    layers = lower_model(source, CompileOptions()).train.layers
    assert [layer.path for layer in layers if layer.binarized] == ["body.0", "body.2"]


@pytest.mark.parametrize(
    ("given", "said"), [("scale_grad_by_freq=True", "scale_grad_by_freq"), ("max_norm=1.0", "forward changes")]
)
def test_what_is_not_supported_is_refused(model_file, given, said):
    source = load_model(model_file(MODEL.replace("BAG", given)))
    with pytest.raises(FqtError, match=said) as refused:
        lower_model(source, CompileOptions())
    assert refused.value.code == "FQT104"


def test_bags_in_one_row_are_refused():
    with ReplacedFunctions(), pytest.raises(FqtError, match="offsets"):
        nn.EmbeddingBag(6, 5)(torch.tensor([1, 2, 3]), torch.tensor([0, 2]))
