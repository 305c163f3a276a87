"""Sums over kept channels: the same gradients, and as few rows of the weight as there are kept channels."""

import pytest
import torch

from fqt_deploy.core.graph import shape
from fqt_deploy.core.optimizer import SGD

aten = torch.ops.aten
fqt = torch.ops.fqt


@pytest.mark.quick(2)
@pytest.mark.parametrize("agp", ["sampled", "topk", "once"])
@pytest.mark.parametrize("model", ["dense", "batch_normed"])
def test_the_same_gradients(model, agp, graph_after, make_source, weight_gradients):
    options = {"agp": agp, "grad_bits": 4, "optimizer": SGD(lr=1.0)}
    whole, kept = (graph_after(model, name, **options) for name in ("decompose-composites", "sum-kept-channels"))
    source = make_source(model)
    expected, found = (weight_gradients(graph, source, seed=3) for graph in (whole, kept))
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_signs_of_pruned_channels_are_not_read(graph_after):
    graph = graph_after("dense", "sum-kept-channels", agp="sampled", grad_bits=4)
    signs = [n for n in graph.calls(fqt.gather_rows.default) if n.args[0].target is fqt.sign.default]
    assert sorted(shape(n) for n in signs) == [[10, 40], [10, 256]], "a quarter of 40 channels"


def test_unpruned_gradients_are_left_alone(graph_after):
    graph = graph_after("dense", "sum-kept-channels", recipe="scq", grad_bits=4)
    assert not graph.calls(fqt.gather_rows.default)
