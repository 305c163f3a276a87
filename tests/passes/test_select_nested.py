"""Nested selections: how many samples go on where, and that gradients stay unbiased."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from fqt_deploy.core.optimizer import SGD
from fqt_deploy.passes.select_nested import kept_samples, selection_places
from fqt_deploy.passes.select_once import plan_selection

fqt = torch.ops.fqt

PARTS = st.lists(st.lists(st.integers(1, 10**6), max_size=4), min_size=1, max_size=8)


def elements(kept, sizes):
    return sum(count * sum(part) for count, part in zip(kept, sizes, strict=True))


@given(PARTS, st.integers(1, 256), st.sampled_from([2, 4, 8]), st.sampled_from([0.25, 0.5, 1.0]))
def test_numbers_of_samples_never_rise_and_keep_one_bit_an_element(sizes, batch, bits, exponent):
    kept = kept_samples(sizes, batch, bits, exponent)
    assert all(1 <= after <= before <= batch for before, after in zip([batch, *kept], kept, strict=False))
    rounded_up = [count for count in kept if count > 1]
    assert elements(rounded_up, sizes[: len(rounded_up)]) <= batch / bits * sum(map(sum, sizes)) * (1 + 1e-6)
    assert elements([count + 1 for count in kept], sizes) >= batch / bits * sum(map(sum, sizes)) * (1 - 1e-6)


@given(st.integers(1, 10**6), st.integers(1, 9), st.integers(8, 256))
def test_equal_layers_are_one_selection(size, layers, batch):
    assert kept_samples([[size]] * layers, batch, 4) == [batch // 4] * layers


def test_samples_go_with_the_root_of_elements():
    assert kept_samples([[2048]] * 3 + [[8192]] * 3 + [[32768]], 1024, 4) == [610] * 3 + [305] * 3 + [152]
    assert kept_samples([[1], [10**6]], 64, 4) == [64, 15], "no more than there are"
    assert kept_samples([[], [100], [], [400]], 64, 4) == [64, 26, 26, 13], "layers in fp32 change nothing"


class Branched(nn.Module):
    """A residual block between two layers: inside it no single gradient carries everything."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.outer = (nn.Conv2d(4, 40, 1), nn.Conv2d(40, 40, 1), nn.Conv2d(40, 40, 1))
        self.shortcut, self.head = nn.Conv2d(40, 40, 1), nn.Linear(40 * 64, 4)

    def forward(self, x):
        x = self.first(x)
        x = self.outer(torch.relu(self.inner(torch.relu(x)))) + self.shortcut(x)
        return self.head(torch.relu(x).flatten(1))


def test_samples_are_selected_where_a_single_gradient_carries_everything(graph_after):
    graph = graph_after(Branched(), "binarize-forward")
    root, *places = selection_places(graph, plan_selection(graph))
    assert root.target is fqt.linear_input_grad.default
    assert [place.target for place in places] == [torch.ops.aten.add.Tensor], "the block's two gradients added up"


@pytest.mark.thorough
def test_gradients_are_unbiased(graph_after, make_source, weight_gradients):
    """The mean over draws is the gradient of the whole batch, up to what its variance explains."""

    source = make_source("staged")
    nested = graph_after("staged", "select-nested", agp="nested", grad_bits=4, optimizer=SGD(lr=1.0))
    assert [node.args[2] for node in nested.calls(fqt.select_sampled.default)] == [6, 1]

    def gradients(graph, seed):
        return torch.cat([gradient.flatten() for gradient in weight_gradients(graph, source, seed).values()])

    true = gradients(graph_after("staged", "binarize-forward", optimizer=SGD(lr=1.0)), 0)
    draws = torch.stack([gradients(nested, seed) for seed in range(100)])
    error = draws.mean(0) - true
    explained = draws.var(0).sum() / len(draws)
    assert float(explained) < 0.1 * float(true @ true), "draws are many enough for the test to mean something"
    assert float(error @ error) < 3 * float(explained)
