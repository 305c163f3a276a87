"""Functions that look at values are traced in a form that computes the same, with the same gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fqt_deploy.capture.joint import capture_training_graph
from fqt_deploy.capture.load_model import load_model
from fqt_deploy.capture.replaced_functions import ReplacedFunctions
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import CompileOptions

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
VARIANCE = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("variance", [VARIANCE, VARIANCE[:, 0], VARIANCE[:, :1], VARIANCE * 1e-7], ids=str)
def test_gaussian_likelihood(reduction, variance):
    def both():
        x, var = X.clone().requires_grad_(), variance.clone().requires_grad_()
        loss = F.gaussian_nll_loss(x, X.flip(0), var, full=reduction == "sum", reduction=reduction)
        return loss, *torch.autograd.grad(loss.sum(), (x, var))

    expected = both()
    with ReplacedFunctions():
        actual = both()
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_gaussian_likelihood_of_one_variance():
    expected = F.gaussian_nll_loss(X, X.flip(0), 0.5)
    with ReplacedFunctions():
        torch.testing.assert_close(F.gaussian_nll_loss(X, X.flip(0), 0.5), expected)


def test_distributions_take_any_values_and_check_again_afterwards():
    with ReplacedFunctions():
        loss = torch.distributions.Normal(X, X).log_prob(X)  # half of the deviations are negative
    assert torch.isnan(loss).any()
    with pytest.raises(ValueError, match="GreaterThan"):
        torch.distributions.Normal(X, X)


def test_distributions_that_exist_already_or_are_told_to_check_do_not():
    prior = torch.distributions.Normal(torch.zeros(3), torch.ones(3)).expand([4, 3])  # has noted that it checks
    bad = torch.full((4, 3), torch.nan)
    with ReplacedFunctions():
        assert torch.isnan(prior.log_prob(bad)).all()
        told = torch.distributions.Normal(X, X.abs(), validate_args=True)
        assert torch.isnan(told.log_prob(bad)).all()
    for each in (prior, told):
        with pytest.raises(ValueError, match="to be within the support"):
            each.log_prob(bad)


class Translator(nn.Module):
    """PyTorch's Transformer, which looks whether the mask that it is given is causal."""

    def __init__(self, mask):
        super().__init__()
        self.body = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)
        self.mask = mask

    def forward(self, x):
        return self.body(x, x, tgt_mask=self.mask).mean(1)


@pytest.mark.parametrize("banned", [torch.ones(3, 3).triu(1).bool(), torch.eye(3).bool()], ids=["causal", "other"])
def test_a_transformer_is_given_its_mask_whether_it_is_causal_or_not(banned):
    torch.manual_seed(0)
    model = Translator(torch.zeros(3, 3).masked_fill(banned, -torch.inf))
    y = torch.arange(4)
    graph = capture_training_graph(model, F.cross_entropy, (X[..., None].expand(4, 3, 8).contiguous(), y))
    given = {"x": X[..., None].expand(4, 3, 8), "y": y} | {n: tensor.initial for n, tensor in graph.state.items()}
    with torch.no_grad():
        loss = graph.module(*[given[name] for name in graph.inputs])[0]
        expected = F.cross_entropy(model(given["x"]), y)
        without = F.cross_entropy(model.body(given["x"], given["x"]).mean(1), y)
    torch.testing.assert_close(loss, expected)
    assert abs(loss - without) > 1e-4


MODEL = """
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(8, 8)

    def forward(self, x):
        BODY


def build_model():
    return Model()


def example_inputs():
    return torch.randn(4, 3, 8), torch.randint(0, 8, (4,))
"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("y = self.body(x); return torch.autograd.grad(y.sum(), self.body.weight, create_graph=True)[0][:4]", "grad"),
    ],
    ids=["a gradient's gradient"],
)
def test_what_depends_on_values_is_refused_with_its_line(model_file, body, said):
    path = model_file(MODEL.replace("BODY", body))
    with pytest.raises(FqtError, match=said) as refused:
        lower_model(load_model(path), CompileOptions())
    assert refused.value.code == "FQT104"
    assert refused.value.location is not None
    assert path.read_text().splitlines()[refused.value.location.line - 1].strip() == body
