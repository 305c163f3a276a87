"""Pixels that are repeated are those of PyTorch, with the same gradients, and samples stay apart in backward."""

import pytest
import torch
from torch.nn import functional as F

from fqt_deploy.capture.load_model import load_model
from fqt_deploy.capture.replaced_functions import ReplacedFunctions
from fqt_deploy.compiler.check import check_model
from fqt_deploy.core.options import CompileOptions
from tests.capture.following import assert_follows_pytorch

IMAGE = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))

REPEATED = {
    "twice": lambda x: F.interpolate(x, scale_factor=2),
    "by a float": lambda x: F.interpolate(x, scale_factor=3.0, mode="nearest-exact"),
    "by each axis": lambda x: F.interpolate(x, scale_factor=(1, 7)),
    "to a size": lambda x: F.interpolate(x, size=(8, 6)),
    "to a square": lambda x: F.interpolate(x, 12, mode="nearest"),
    "as a module": torch.nn.Upsample(scale_factor=2),
    "of one axis": lambda x: F.interpolate(x.flatten(2), scale_factor=5),
    "of three axes": lambda x: F.interpolate(x[:, :, None], scale_factor=(2, 1, 3)),
}
OTHERS = {
    "to another size": lambda x: F.interpolate(x, size=(7, 6)),
    "smaller": lambda x: F.interpolate(x, scale_factor=0.5),
    "not as often": lambda x: F.interpolate(x, scale_factor=1.5),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
    "of the same factor": lambda x: F.interpolate(x, scale_factor=2, recompute_scale_factor=True),
}


def traced(function, x):
    """The targets of what ``function`` and its gradient are traced as, and both."""

    def both(x):
        x = x.detach().requires_grad_()
        y = function(x)
        weight = torch.linspace(0.5, 1.5, y.numel()).reshape(y.shape)
        return y, *torch.autograd.grad((y * weight).sum(), x)

    with ReplacedFunctions():
        graph = torch.fx.experimental.proxy_tensor.make_fx(both)(x)
        actual = both(x)
    return {str(node.target) for node in graph.graph.nodes}, actual, both(x)


@pytest.mark.parametrize("function", [pytest.param(f, id=name) for name, f in {**REPEATED, **OTHERS}.items()])
def test_values_and_gradients(function):
    _, actual, expected = traced(function, IMAGE)
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", [pytest.param(f, id=name) for name, f in REPEATED.items()])
def test_a_whole_number_of_times_is_a_view_and_sums(function):
    targets, _, _ = traced(function, IMAGE)
    assert any("expand" in target for target in targets)
    assert not any("nearest" in target or "index" in target for target in targets)


@pytest.mark.parametrize("wrong", [{"antialias": True}, {"align_corners": True}])
def test_what_pytorch_refuses_for_repeated_pixels_is_its_error(wrong):
    with pytest.raises(ValueError), ReplacedFunctions():  # noqa: PT011 - PyTorch's words
        F.interpolate(torch.randn(1, 2, 3, 3), scale_factor=2, mode="nearest", **wrong)


def test_two_sizes_are_the_error_of_pytorch():
    with ReplacedFunctions(), pytest.raises(ValueError, match="only one of size or scale_factor"):
        F.interpolate(IMAGE, size=8, scale_factor=2)
    with ReplacedFunctions(), pytest.raises(ValueError, match="spatial dimensions"):
        F.interpolate(IMAGE, size=(8, 8, 8))


@pytest.mark.parametrize("factor", [*range(1, 65)])
def test_every_factor_is_that_of_pytorch(factor):
    x = torch.arange(500.0).view(1, 1, 500)
    with ReplacedFunctions():
        repeated = F.interpolate(x, scale_factor=factor)
    assert torch.equal(repeated, F.interpolate(x, scale_factor=factor))


MODEL = """
import torch
from torch import nn
from torch.nn import functional as F


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.into = nn.Conv2d(3, 32, 3, padding=1)
        self.down = nn.Conv2d(32, 32, 3, 2, 1)
        self.up = nn.Conv2d(32, 32, 3, padding=1)
        self.out = nn.Conv2d(64, 3, 3, padding=1)

    def forward(self, x):
        wide = self.into(x)
        deep = F.relu(self.down(F.relu(wide)))
        return self.out(torch.cat([F.relu(self.up(F.interpolate(deep, scale_factor=2))), wide], 1))


def build_model():
    return UNet()


def loss(outputs, targets):
    return F.mse_loss(outputs, targets)


def example_inputs():
    return torch.randn(6, 3, 8, 8), torch.randn(6, 3, 8, 8)
"""


def test_a_network_that_repeats_pixels_selects_samples_once_for_all_of_backward(model_file):
    report = check_model(load_model(model_file(MODEL)), CompileOptions())
    assert report.ok
    assert report.selection_note == ""


def test_a_compiled_step_follows_pytorch(model_file, tmp_path):
    assert_follows_pytorch(load_model(model_file(MODEL)), tmp_path / "unet.fqt")
