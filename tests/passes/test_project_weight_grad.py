"""Projection of weight gradients: where it is applied, that it takes out noise only, and how much that is."""

import pytest
import torch
from torch import nn

from fqt_deploy.core.optimizer import SGD

fqt = torch.ops.fqt

BODY = "param/body.weight"


class Normalized(nn.Module):
    """The second layer is batch-normalized; the third is too, but its output is also read beside that."""

    def __init__(self):
        super().__init__()
        self.first, self.body, self.branch = (nn.Conv2d(i, 8, 3, padding=1) for i in (4, 8, 8))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8, eps=1e-9) for _ in range(3))
        self.head = nn.Linear(512, 4)

    def forward(self, x):
        x = torch.relu(self.norms[0](self.first(x)))
        x = torch.relu(self.norms[1](self.body(x)))
        x = self.branch(x)
        return self.head((x + self.norms[2](x)).flatten(1))


@pytest.fixture(scope="module")
def source(make_source):
    torch.manual_seed(0)
    model = Normalized()
    with torch.no_grad():
        for layer in (model.body, model.branch):
            layer.weight.mul_(0.3)  # the smaller alpha, the more of the gradient its own noise is
    return make_source(model)


def of(graph_after, source, end, projection):
    return graph_after(source.module, end, recipe="scq", grad_bits=4, projection=projection, optimizer=SGD(lr=1.0))


def test_only_layers_whose_output_nothing_but_the_norm_reads_are_marked(graph_after, source):
    graph = of(graph_after, source, "project-weight-grad", "auto")
    marked = {node.meta["layer"]: node.args[2] for node in graph.calls(fqt.latent_weight_grad.default)}
    assert marked == {"body": True, "branch": False}


def test_fp32_gradients_do_not_change(graph_after, source, weight_gradients):
    """What is taken out is zero but for the eps of the normalization, which is next to nothing here."""
    plain, projected = (
        weight_gradients(of(graph_after, source, end, "auto"), source, 0)
        for end in ("binarize-forward", "project-weight-grad")
    )
    for name, gradient in plain.items():
        assert torch.allclose(gradient, projected[name], rtol=1e-3, atol=1e-3 * float(gradient.abs().max())), name


@pytest.mark.thorough
def test_noise_falls_and_gradients_stay_unbiased(graph_after, source, weight_gradients):
    true = weight_gradients(of(graph_after, source, "binarize-forward", "auto"), source, 0)[BODY]
    variance = {}
    for projection in ("auto", "off"):
        graph = of(graph_after, source, "insert-scq", projection)
        draws = torch.stack([weight_gradients(graph, source, seed)[BODY] for seed in range(40)])
        variance[projection] = float(draws.var(0).sum())
        error = draws.mean(0) - true
        assert float(error.square().sum()) < 3 * variance[projection] / len(draws), projection
    assert variance["auto"] < 0.5 * variance["off"], variance
