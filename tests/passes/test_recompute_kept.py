"""What backward computes again: that it has the same bits, of kept tokens or of all, and which values are not kept."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import behind_views, shape
from fqt_deploy.core.optimizer import SGD
from fqt_deploy.passes import recompute_kept
from tests.passes.selection_models import SELECTED

fqt = torch.ops.fqt
TOKENS = {"agp": "tokens", "grad_bits": 4, "optimizer": SGD(lr=1.0)}


class Attending(nn.Module):
    """A block of a transformer with query, key and value by layers of their own."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.deeper, self.head = (
            nn.Linear(32, 32), nn.LayerNorm(32), nn.LayerNorm(32), nn.Linear(32, 4),
        )  # fmt: skip
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        t = self.embed(x.reshape(len(x), 8, 32))
        y = self.norm(t)
        q, k, v = (layer(y).view(len(x), 8, 2, 16).transpose(1, 2) for layer in (self.q, self.k, self.v))
        t = t + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), 8, 32))
        return self.head((t + self.down(F.gelu(self.up(self.deeper(t))))).mean(1))


class Mixing(nn.Module):
    """A block of a mixer on as many tokens as features: a permutation that no shape tells."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.deeper, self.head = (
            nn.Linear(32, 128), nn.LayerNorm(32), nn.LayerNorm(32), nn.Linear(32, 4),
        )  # fmt: skip
        self.across, self.back, self.up, self.down = (
            nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 64), nn.Linear(64, 32),
        )  # fmt: skip

    def forward(self, x):
        t = self.embed(x.reshape(len(x), 8, 32)).reshape(len(x), 32, 32)
        t = t + self.back(F.gelu(self.across(self.norm(t).transpose(1, 2)))).transpose(1, 2)
        return self.head((t + self.down(F.gelu(self.up(self.deeper(t))))).mean(1))


FORMS = {
    "attending": Attending,
    "mixing": Mixing,
    **{name: SELECTED[name] for name in ("class-token", "fused-permute", "fused-chunk", "shifted")},
    "time-first": SELECTED["encoder-time-first"],
}


def recomputed(graph):
    """The products that backward computes again, each with how many tokens it has."""
    again = graph.calls(fqt.level_conv2d.default, fqt.binary_conv2d.default)
    return [(n.meta["layer"], shape(n)[2]) for n in again if n.meta["phase"] == "backward"]


@pytest.fixture
def lowered(graph_after, monkeypatch):
    """``lowered(module, smallest)``: the graph where values of so many bytes are computed again."""

    def run(module, smallest, **options):
        monkeypatch.setattr(recompute_kept, "SMALLEST", smallest)
        return graph_after(module, "recompute-kept", **(TOKENS | options))

    return run


@pytest.mark.quick(2)
@pytest.mark.parametrize("bits", [1, 4])
@pytest.mark.parametrize("name", FORMS)
def test_what_is_computed_again_has_the_bits_of_what_was_there(name, bits, lowered, make_source, weight_gradients):
    torch.manual_seed(0)
    module = FORMS[name]()
    found = []
    for smallest in (1 << 40, 0):
        graph = lowered(module, smallest, activation_bits=bits)
        assert bool(recomputed(graph)) == (smallest == 0)
        found.append(weight_gradients(graph, make_source(module), seed=3))
    assert found[0].keys() == found[1].keys()
    for parameter, gradient in found[0].items():
        torch.testing.assert_close(found[1][parameter], gradient, rtol=0, atol=0, msg=parameter)


def test_keys_and_values_are_computed_again_of_all_tokens_and_the_rest_of_the_kept_ones(lowered):
    graph = lowered(Attending(), 0)
    kept, every = 8 * 2, 8 * 8
    expected = {"up": kept, "out": kept, "q": kept, "k": every, "v": every, "embed": every}
    assert dict(recomputed(graph)) == expected
    (backward,) = graph.calls(fqt.attention_backward.default)
    for operand in (call_of(backward).k, call_of(backward).v):
        assert behind_views(operand).meta["role"] == "rematerialize"
    order = list(graph.graph.nodes)
    key = next(n for n in graph.calls(fqt.level_conv2d.default)[::-1] if n.meta["layer"] == "k")
    between = order[order.index(key) : order.index(backward)]
    assert not [n for n in between if n.meta.get("role") != "rematerialize"], "right before it is read"


def test_across_a_permutation_a_product_is_computed_again_of_all_tokens(lowered):
    graph = lowered(Mixing(), 0, exclude=("embed",))
    kept, every = 8 * 8, 8 * 32
    assert dict(recomputed(graph)) == {"up": kept, "across": kept, "back": every}


def test_without_a_selection_of_tokens_nothing_is_computed_again_of_all(lowered):
    assert not recomputed(lowered(Attending(), 0, agp=None, recipe="scq"))


def test_what_costs_much_for_its_bytes_is_kept(lowered, monkeypatch):
    monkeypatch.setattr(recompute_kept, "OPERATIONS_PER_BYTE_OF_ALL", 2 * 4 * 32 // 4 - 1)
    assert not {"k", "v"} & dict(recomputed(lowered(Attending(), 0))).keys()
    monkeypatch.setattr(recompute_kept, "OPERATIONS_PER_BYTE_OF_ALL", 2 * 4 * 32 // 4)
    assert {"k", "v"} < dict(recomputed(lowered(Attending(), 0))).keys()


class Inverted(nn.Module):
    """A layer and the shortcut around it read the same codes, and backward comes to the shortcut first."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(32, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU())
        self.narrow = nn.Sequential(nn.Conv2d(128, 48, 1, bias=False), nn.BatchNorm2d(48))
        self.shortcut = nn.Sequential(nn.Conv2d(32, 48, 1, bias=False), nn.BatchNorm2d(48))
        self.head = nn.Linear(48, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.head((self.narrow(self.wide(x)) + self.shortcut(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("agp", ["nested", "once"])
def test_codes_of_two_layers_are_gathered_before_both(agp, graph_after, monkeypatch):
    """Pipelines check each graph: a value that is read before it is computed ends them."""
    monkeypatch.setattr(recompute_kept, "SMALLEST", 120_000)  # of the wide layer alone
    monkeypatch.setattr(recompute_kept, "OPERATIONS_PER_BYTE", 1e9)
    graph = graph_after(Inverted(), "recompute-kept", agp=agp, optimizer=SGD(lr=1.0))
    again = [n for n in graph.calls(fqt.level_conv2d.default) if n.meta.get("phase") == "backward"]
    gathers = [(g.args[0], g.args[1]) for g in graph.calls(fqt.gather_rows.default)]
    assert len(again) == 1
    assert len(gathers) == len(set(gathers)), "the same samples are gathered once"


def test_kept_samples_drop_what_all_of_them_dropped(lowered, make_source, weight_gradients):
    """The mask of a dropout is computed from no sample, and has elements for each."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(4, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25))
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 4))
    found = []
    for smallest in (1 << 40, 0):
        graph = lowered(module, smallest, agp="sampled")
        assert bool(recomputed(graph)) == (smallest == 0)
        found.append(weight_gradients(graph, make_source(module), seed=3))
    for parameter, gradient in found[0].items():
        torch.testing.assert_close(found[1][parameter], gradient, rtol=0, atol=0, msg=parameter)
