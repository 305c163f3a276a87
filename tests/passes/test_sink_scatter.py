"""Sunk scatters: the same gradients from the kept samples alone, and a scatter again where all samples meet."""

import pytest
import torch
from torch import nn

from fqt_deploy.core.graph import shape
from fqt_deploy.core.optimizer import SGD

aten = torch.ops.aten
fqt = torch.ops.fqt
OPTIONS = {"agp": "sampled", "grad_bits": 4, "optimizer": SGD(lr=1.0)}
KEPT = 2
"""Of the eight samples."""


class Attention(nn.Module):
    """Products of activations, a softmax and a normalization in front of the layer that is pruned."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.out = nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = self.norm(self.embed(x.flatten(1).unflatten(1, (16, 16))))
        mixed = torch.softmax(x @ x.transpose(1, 2), -1) @ x
        return self.head(torch.nn.functional.gelu(self.out(mixed)).mean(1))


class Mixing(nn.Module):
    """Two layers of a residual branch."""

    def __init__(self):
        super().__init__()
        self.embed, self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = self.embed(x.flatten(1).unflatten(1, (16, 16)))
        return self.head((x + self.second(nn.functional.gelu(self.first(x)))).mean(1))


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("model", "layer"),
    [("dense", "3"), ("convolutional", "3"), ("staged", "2"), ("normed", "body"), (Attention, "out")],
)
def test_one_pruned_layer_gives_the_same_gradients(model, layer, graph_after, make_source, weight_gradients):
    """With a single quantizer, in front of everything that is sunk, random numbers are the same."""
    torch.manual_seed(0)
    module = model if isinstance(model, str) else model()
    options = {**OPTIONS, "include": (layer,)}
    dense, sunk = (graph_after(module, name, **options) for name in ("insert-agp", "sink-scatter"))
    assert len(sunk.calls(fqt.gather_rows.default)) > len(dense.calls(fqt.gather_rows.default)), "something was sunk"
    source = make_source(module)
    expected, found = (weight_gradients(graph, source, seed=3) for graph in (dense, sunk))
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_linear_layers_behind_a_pruned_one_form_their_gradients_from_kept_samples(graph_after):
    graph = graph_after("dense", "sink-scatter", **OPTIONS, include=("3",))
    rows = [shape(node.args[1])[0] for node in graph.calls(fqt.linear_weight_grad.default)]
    assert sorted(rows) == [KEPT, 8, 8], "the first layer's from two samples; the pruned and the last layer's from all"


def test_the_next_quantizer_reads_the_kept_samples(graph_after, make_source, weight_gradients):
    """Codes of eight bits round little: both graphs agree but for that, with the same samples and channels."""
    options = {**OPTIONS, "grad_bits": 8, "include": ("first", "second")}
    torch.manual_seed(0)
    module = Mixing()
    dense, sunk = (graph_after(module, name, **options) for name in ("insert-agp", "sink-scatter"))
    codes = [shape(node) for node in sunk.calls(fqt.quantize_channels.default)]
    assert [c[0] for c in codes] == [8, 1], "samples of the first branch layer's channels: those that are kept"
    source = make_source(module)
    for seed in range(4):
        expected, found = (weight_gradients(graph, source, seed) for graph in (dense, sunk))
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() <= 0.05 * gradient.norm(), (seed, name)


def test_what_all_samples_have_is_added_to_scattered_ones(graph_after):
    graph = graph_after(Mixing(), "sink-scatter", **OPTIONS, include=("first", "second"))
    sums = [n for n in graph.calls(aten.add.Tensor) if any(_is_scattered(a) for a in n.all_input_nodes)]
    assert len(sums) == 1
    assert shape(sums[0])[0] == 8


def test_without_a_scatter_nothing_changes(graph_after):
    before, after = (graph_after("dense", name, agp="topk", grad_bits=1, recipe="scq+agp") for name in
                     ("insert-agp", "sink-scatter"))  # fmt: skip
    assert [str(n) for n in before.graph.nodes] == [str(n) for n in after.graph.nodes]


def _is_scattered(node):
    while node.target is aten.view.default:
        node = node.args[0]
    return node.target is fqt.scatter_rows.default
