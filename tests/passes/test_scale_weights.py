"""Weights begin larger where their signs would compute smaller values than they do, and nowhere else."""

import pytest
import torch
from torch import nn

from fqt_deploy.passes.scale_weights import scaled_weight
from tests.passes.training_graphs import graph_of, labels_of


def initial(module, loss=nn.functional.cross_entropy, x=None, **options):
    """The graph behind ``choose-bits``, and by name what each parameter of ``module`` begins with."""
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)) if x is None else x
    graph = graph_of(module, (x, labels_of(x)), before="binarize-forward", loss=loss, **options)
    state = {name: tensor.initial for name, tensor in graph.state.items()}
    return graph, {name: state[f"param/{name}"] for name, _ in module.named_parameters()}


def changed(module, **options):
    """The names of the parameters that begin as something else than in ``module``."""
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    _, found = initial(module, **options)
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters()), "the model is the user's"
    return {name for name, value in found.items() if not torch.equal(value.detach(), before[name])}


class Layers(nn.Module):
    def __init__(self, *behind, bias=True, loss_reads_weight=False):
        super().__init__()
        self.first, self.body = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 16, 3, bias=bias)
        self.behind, self.head = nn.Sequential(*behind), nn.Linear(16, 4)
        self.loss_reads_weight = loss_reads_weight

    def forward(self, x):
        y = self.head(self.behind(self.body(self.first(x).relu())).relu().mean((2, 3)))
        return y + self.body.weight.square().sum() if self.loss_reads_weight else y


@pytest.mark.quick(per="behind")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("behind", "scaled"), [((), True), ((nn.GroupNorm(4, 16),), True), ((nn.BatchNorm2d(16),), False)]
)
def test_layers_without_batch_normalization_behind_them_are_scaled(behind, scaled, bias):
    assert changed(Layers(*behind, bias=bias)) == ({"body.weight"} if scaled else set())


@pytest.mark.thorough
def test_signs_and_layers_in_fp32_and_shared_weights_stay():
    assert changed(Layers(), activation_bits=1, activation_grid="sign") == set()
    assert changed(Layers(), activation_bits=1, activation_grid="sign", bits={"body": (1, 1)}) == set()
    assert changed(Layers(), activation_bits=1, activation_grid="sign", bits={"body": (1, 2)}) == {"body.weight"}
    assert changed(Layers(), exclude=("*",)) == set()
    assert changed(Layers(loss_reads_weight=True)) == set()
    assert changed(Layers(), activation_bits=1) == {"body.weight"}


def test_a_note_says_so():
    graph, _ = initial(Layers())
    assert [note for note in graph.notes if "weights of 1 layer begins" in note]
    graph, _ = initial(Layers(nn.BatchNorm2d(16)))
    assert not [note for note in graph.notes if "weights" in note]


@pytest.mark.parametrize("extents", [(5, 40), (5, 8, 3, 3)])
def test_the_mean_magnitude_becomes_the_root_mean_square(extents):
    w = torch.randn(extents, generator=torch.Generator().manual_seed(0))
    w[0] = 0
    found = scaled_weight(w)
    assert torch.equal(found.sign(), w.sign())
    mean = found.flatten(1).abs().mean(1)
    torch.testing.assert_close(mean, w.flatten(1).square().mean(1).sqrt())


def test_values_keep_their_size_through_many_layers():
    """Those of the last layer in full precision and in the quantized step."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(192, 192), nn.ReLU()) for _ in range(8)]
    model = nn.Sequential(nn.Flatten(), *layers, nn.Linear(192, 4))
    with torch.no_grad():
        for layer in layers:
            nn.init.kaiming_normal_(layer[0].weight)
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph, _ = initial(model, x=x)
    spacings = [record.grid.spacing for record in graph.layers if record.grid and not record.grid.signed]
    with torch.no_grad():
        sizes = [model[: end + 1](x).square().mean().sqrt() for end in range(1, 8)]
    ratios = [spacing / size.item() for spacing, size in zip(spacings, sizes, strict=True)]
    assert max(ratios) < 1.25 * min(ratios), "0.8 to the power of 6 is 0.26"
