"""Functions that look at values are traced in a form that computes the same, with the same gradients."""

import pytest
import torch
from torch.nn import functional as F

from fqt_deploy.capture.without_checks import WithoutChecks

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
    with WithoutChecks():
        actual = both()
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_gaussian_likelihood_of_one_variance():
    expected = F.gaussian_nll_loss(X, X.flip(0), 0.5)
    with WithoutChecks():
        torch.testing.assert_close(F.gaussian_nll_loss(X, X.flip(0), 0.5), expected)
