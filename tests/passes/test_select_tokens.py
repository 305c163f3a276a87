"""Selections of tokens: what they keep exact, what they share, that gradients are unbiased, and with less variance."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fqt_deploy.core.call import call_of
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import shape
from fqt_deploy.core.optimizer import SGD
from fqt_deploy.core.text import graph_text
from tests.passes.selection_models import SELECTED, tokens

fqt = torch.ops.fqt
aten = torch.ops.aten
UNCHANGED = {"optimizer": SGD(lr=1.0)}


class Separate(nn.Module):
    """Query, key and value by layers of their own, fewer heads of keys than of queries, gated units, and a mask."""

    def __init__(self, *, causal=False, mask=None):
        super().__init__()
        self.causal, self.embed, self.norm = causal, nn.Linear(32, 32), nn.LayerNorm(32)
        self.register_buffer("mask", mask)
        self.q, self.k, self.v, self.out = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16), nn.Linear(32, 32)
        self.gate, self.up, self.down, self.head = (
            nn.Linear(32, 48), nn.Linear(32, 48), nn.Linear(48, 32), nn.Linear(32, 4),
        )  # fmt: skip

    def forward(self, x):
        t = self.embed(x.reshape(len(x), 8, 32))
        y = self.norm(t)
        q, k, v = (layer(y).view(len(x), 8, -1, 16).transpose(1, 2) for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v, self.mask, is_causal=self.causal, enable_gqa=True)
        t = t + self.out(attended.transpose(1, 2).reshape(len(x), 8, 32))
        return self.head((t + self.down(F.silu(self.gate(t)) * self.up(t))).mean(1))


class Spatial(nn.Module):
    """Linear layers on [batch, height, width, channels], with a scale for each sample and a normalization."""

    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down, self.head = (
            nn.Linear(4, 32), nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 4),
        )  # fmt: skip
        self.norm, self.gamma = nn.LayerNorm(32), nn.Parameter(torch.full((32,), 0.5))

    def forward(self, x):
        t = self.embed(x.permute(0, 2, 3, 1))
        t = t + self.gamma * self.down(F.gelu(self.up(self.norm(t) * t.mean((1, 2), keepdim=True))))
        return self.head(t.mean((1, 2)))


class Repeated(nn.Module):
    """One layer that is called twice, the second time on what it gave."""

    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x):
        t = self.embed(tokens(x))
        return self.head(self.body(torch.tanh(self.body(t))).mean(1))


class Deep(nn.Module):
    """Two blocks of a transformer on sixteen tokens of 16 features."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(16, 32), nn.Linear(32, 4)
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)]) for _ in range(2)
        )

    def forward(self, x):
        t = self.embed(x.reshape(len(x), 16, 16))
        for norm, up, down in self.blocks:
            t = t + down(F.gelu(up(norm(t))))
        return self.head(t.mean(1))


class TwoSizes(nn.Module):
    """Tokens of two sizes of one input: the larger ones attend to the smaller."""

    def __init__(self):
        super().__init__()
        self.large, self.small = nn.Linear(64, 32), nn.Linear(32, 32)
        self.attention, self.head = nn.MultiheadAttention(32, 2, batch_first=True), nn.Linear(32, 4)

    def forward(self, x):
        large, small = self.large(x.reshape(len(x), 4, 64)), self.small(x.reshape(len(x), 8, 32))
        attended, _ = self.attention(large, small, small, need_weights=False)
        return self.head((large + attended).mean(1))


FORMS = {
    **{name: SELECTED[name] for name in ("class-token", "fused-permute", "fused-chunk", "encoder", "shifted")},
    "time-first": SELECTED["encoder-time-first"],
    "separate": Separate,
    "causal": lambda: Separate(causal=True),
    "mask of keys": lambda: Separate(mask=(torch.arange(8) < 6)[None]),
    "mask of pairs": lambda: Separate(mask=torch.ones(8, 8).tril(1).bool()),
    "spatial": Spatial,
    "repeated": Repeated,
    "deep": Deep,
    "two sizes": TwoSizes,
}


@pytest.mark.quick(4)
@pytest.mark.parametrize("name", FORMS)
def test_where_all_tokens_are_kept_gradients_are_those_without_a_selection(
    name, graph_after, make_source, weight_gradients
):
    torch.manual_seed(0)
    module = FORMS[name]()
    whole = graph_after(module, "binarize-forward", **UNCHANGED)
    rewritten = graph_after(module, "select-tokens", agp="tokens", grad_bits=1, **UNCHANGED)
    assert rewritten.selection == "tokens"
    assert rewritten.calls(fqt.select_sampled.default)
    source = make_source(module)
    expected, found = (weight_gradients(graph, source, seed=3) for graph in (whole, rewritten))
    assert expected.keys() == found.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-6, msg=parameter)


def selected(graph):
    """The layers at whose gradients tokens are selected, in backward order."""
    return [node.meta["layer"] for node in graph.calls(fqt.select_sampled.default)]


def test_layers_of_one_input_select_together_and_those_behind_kept_tokens_not_at_all(graph_after):
    graph = graph_after(Separate(), "select-tokens", agp="tokens", grad_bits=4)
    assert selected(graph) == ["down", "out", "v", "embed"], "gate and up, and q, k and v, have the same tokens"
    products = [n for n in graph.calls(fqt.linear_input_grad.default) if n.meta["record"].binarized]
    assert {shape(n)[0] for n in products} == {8 * 2}
    (backward,) = graph.calls(fqt.attention_backward.default)
    assert shape(call_of(backward).gradient) == [8, 2, 2, 16], "two queries of each sample"
    assert shape(call_of(backward).k) == [8, 8, 1, 16]


def test_what_goes_around_a_branch_is_of_all_tokens(graph_after):
    graph = graph_after(Deep(), "select-tokens", agp="tokens", grad_bits=4)
    around = [n for n in graph.calls(aten.add.Tensor) if n.meta["phase"] == "backward"]
    assert [shape(n) for n in around] == [[8, 16, 32]] * 2
    biases = [n for n in graph.calls(aten.sum.dim_IntList) if call_of(n).dim == [0] and n.meta.get("kept")]
    assert [shape(call_of(n).self)[0] for n in biases] == [32] * 4


def test_a_model_without_tokens_is_refused_if_they_are_asked_for(graph_after):
    with pytest.raises(FqtError, match="no layer on 1 bit has several rows of a sample") as caught:
        graph_after("dense", "select-tokens", agp="tokens")
    assert caught.value.code == "FQT205"


def test_other_layers_of_such_a_model_select_as_sampled_does(graph_after):
    """The layer behind the mean has one row of a sample."""
    module = Deep()
    module.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    graph = graph_after(module, "insert-agp", agp="tokens", grad_bits=4)
    pruned = {n.meta["layer"]: call_of(n).parts for n in graph.calls(fqt.select_sampled.default)}
    assert pruned == {"head.0": 1, "blocks.1.2": 8, "blocks.0.2": 8}


def test_what_is_chosen_for_a_transformer_is_what_can_be_asked_for(graph_after):
    """Also where some layers have one row of a sample: a fingerprint does not say which of both it was."""
    texts = []
    for asked in ({}, {"agp": "tokens"}):
        torch.manual_seed(0)
        module = Deep()
        module.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
        graph = graph_after(module, "sink-scatter", **asked)
        assert {call_of(n).bits for n in graph.calls(fqt.quantization_grid.default)} == {4}
        texts.append(graph_text(graph))
    assert texts[0] == texts[1]


def draws_of(graph, source, weight_gradients, count):
    each = [weight_gradients(graph, source, seed) for seed in range(count)]
    return torch.stack([torch.cat([gradient.flatten() for gradient in found.values()]) for found in each])


@pytest.mark.thorough
def test_gradients_are_unbiased_and_vary_less_than_where_samples_are_kept(graph_after, make_source, weight_gradients):
    torch.manual_seed(0)
    module = Deep()
    source = make_source(module)
    (true,) = draws_of(graph_after(module, "binarize-forward", **UNCHANGED), source, weight_gradients, 1)
    variance = {}
    for agp in ("tokens", "nested"):
        graph = graph_after(module, f"select-{agp}", agp=agp, grad_bits=4, **UNCHANGED)
        draws = draws_of(graph, source, weight_gradients, 60)
        variance[agp] = float(draws.var(0).sum())
        error = draws.mean(0) - true
        assert variance[agp] / len(draws) < 0.1 * float(true @ true), "draws are many enough to mean something"
        assert float(error @ error) < 3 * variance[agp] / len(draws)
    assert variance["tokens"] < variance["nested"] / 4
