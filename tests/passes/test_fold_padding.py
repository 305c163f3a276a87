"""Zeros in front of a binarized convolution stay zero, however they are spelled."""

import pytest
import torch
from torch import nn

from fqt_deploy.core.optimizer import SGD

fqt = torch.ops.fqt
OPTIONS = {"recipe": "none", "optimizer": SGD(lr=1.0)}


def net(*middle, out=64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(8 * out, 4)
    )


SPELLINGS = {
    "in-front": lambda: net(nn.ZeroPad2d(1), nn.Conv2d(8, 8, 3)),
    "in-front-and-own": lambda: net(nn.ZeroPad2d(1), nn.Conv2d(8, 8, 5, padding=1)),
    "one-side": lambda: net(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, stride=2), out=16),
    "far-side": lambda: net(nn.ZeroPad2d((3, 0, 0, 2)), nn.Conv2d(8, 8, 3, stride=2, padding=1), out=30),
    "same-even": lambda: net(nn.Conv2d(8, 8, 4, padding="same")),
    "same-even-wide": lambda: net(nn.Conv2d(8, 8, (2, 3), padding="same")),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", SPELLINGS)
def test_the_numbers_stay(name, graph_after, make_source, weight_gradients):
    """In fp32 nothing changes but who adds the zeros."""
    model = SPELLINGS[name]()
    layer = next(name for name, module in model[2:].named_modules() if isinstance(module, nn.Conv2d))
    options = {**OPTIONS, "include": (layer,)}
    before, after = (graph_after(model, at, **options) for at in ("annotate-layers", "fold-padding"))
    assert len(after.calls(torch.ops.aten.constant_pad_nd.default)) < 3, "what is padded is the gradient, if anything"
    before, after = (graph_after(model, at, **options) for at in ("replace-dropout", "fold-padding"))
    source = make_source(model)
    expected, found = (weight_gradients(graph, source, seed=0) for graph in (before, after))
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-6, msg=parameter)


def test_zeros_in_front_are_the_convolutions_padding(graph_after, make_source, weight_gradients):
    """A binarized layer computes the same from zeros in front of it and from its own padding."""
    outside, inside = SPELLINGS["in-front"](), net(nn.Conv2d(8, 8, 3, padding=1))
    outside[3].load_state_dict(inside[2].state_dict())
    outside[-1].load_state_dict(inside[-1].state_dict())
    outside[0].load_state_dict(inside[0].state_dict())
    found = weight_gradients(
        graph_after(outside, "binarize-forward", include=("3",), **OPTIONS), make_source(outside), 0
    )
    expected = weight_gradients(
        graph_after(inside, "binarize-forward", include=("2",), **OPTIONS), make_source(inside), 0
    )
    for (name, gradient), want in zip(found.items(), expected.values(), strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-4, atol=1e-6, msg=name)


def test_a_layer_behind_zeros_of_another_module_stays_in_fp32_by_default(graph_after):
    graph = graph_after(SPELLINGS["in-front"](), "annotate-layers")
    assert not graph.layer("3").binarized
    assert "zeros are padded in front" in graph.layer("3").reason
    assert graph_after(SPELLINGS["same-even"](), "annotate-layers").layer("2").binarized
    assert graph_after(net(nn.Conv2d(8, 8, 3, padding="valid"), out=36), "annotate-layers").layer("2").binarized


def test_a_padding_of_no_zeros_does_not_keep_a_layer_in_fp32(graph_after):
    """Models that imitate TensorFlow's padding pad every convolution, most of them by nothing."""
    model = net(nn.ZeroPad2d(0), nn.Conv2d(8, 8, 3, padding=1))
    assert graph_after(model, "annotate-layers").layer("3").binarized
    after = graph_after(model, "binarize-forward")
    assert not after.calls(torch.ops.aten.constant_pad_nd.default)
