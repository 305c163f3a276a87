"""Bags of tokens are those of PyTorch, with the same gradients, or are refused."""

import pytest
import torch
from torch import nn

from fqt_deploy.capture.load_model import load_model
from fqt_deploy.capture.replaced_functions import ReplacedFunctions
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import CompileOptions
from tests.capture.following import assert_follows_pytorch

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


ROW, STARTS = torch.tensor([1, 4, 4, 0, 2, 0, 5, 3, 2, 1]), torch.tensor([0, 3, 3, 5, 6])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("padding", [None, 0, -1])
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
def test_bags_in_one_row_of_tokens(mode, padding, weighted, last):
    """Some are empty, and some hold padding alone."""
    if weighted and mode != "sum":
        return
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(6, 5, mode=mode, padding_idx=padding, include_last_offset=last)
    starts = torch.cat((STARTS, torch.tensor([len(ROW)]))) if last else STARTS
    factors = torch.rand(len(ROW), requires_grad=True) if weighted else None
    goal, number = torch.randn(5, 5), {"sum": 0, "mean": 1}[mode]
    padding = None if padding is None else padding % 6

    def run(function):
        y = function()
        return y, *torch.autograd.grad((y * goal).sum(), [bag.weight, *([factors] if weighted else [])])

    def as_function():
        return torch.embedding_bag(bag.weight, ROW, starts, False, number, False, factors, last, padding)[0]

    expected = run(lambda: bag(ROW, starts, per_sample_weights=factors))
    for called in (lambda: bag(ROW, starts, per_sample_weights=factors), as_function):
        with ReplacedFunctions():
            actual = run(called)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_bags_that_do_not_begin_at_the_first_token_are_nan():
    with ReplacedFunctions():
        y = nn.EmbeddingBag(6, 5)(ROW, torch.tensor([1, 3]))
    assert y.isnan().all()


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


def test_the_maximum_of_bags_in_one_row_is_refused():
    with ReplacedFunctions(), pytest.raises(FqtError, match=r"FQT104.*maximum of tokens in one row"):
        nn.EmbeddingBag(6, 5, mode="max")(torch.tensor([1, 2, 3]), torch.tensor([0, 2]))


def test_bags_called_as_a_function_follow_pytorch(model_file, tmp_path):
    """A compiled step, whose rows of tokens are made one row, as ``torch.embedding_bag`` takes them."""
    called = "torch.embedding_bag(self.bag.weight, tokens.flatten(), torch.arange(0, 320, 20), False, 1)[0]"
    text = MODEL.replace("BAG", "padding_idx=0").replace("self.bag(tokens)", called)
    assert_follows_pytorch(load_model(model_file(text)), tmp_path / "step")
