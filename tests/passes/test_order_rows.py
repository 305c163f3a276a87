"""Rows in the order of samples: the numbers stay, and the quantizers' groups become samples."""

import pytest
import torch
from torch import nn

from fqt_deploy.core.graph import shape
from fqt_deploy.core.optimizer import SGD
from fqt_deploy.ops.sample_axes import sample_axes
from fqt_deploy.ops.traits import LEADING
from tests.passes.selection_models import Encoder, Recurrent, shifted

fqt = torch.ops.fqt
OPTIONS = {"recipe": "none", "optimizer": SGD(lr=1.0)}
TURNED = {"shifted": shifted, "encoder": lambda: Encoder(batch_first=True), "gru": lambda: Recurrent(nn.GRU)}


@pytest.mark.quick
@pytest.mark.parametrize("name", TURNED)
def test_the_numbers_stay(name, graph_after, make_source, weight_gradients):
    torch.manual_seed(0)
    module = TURNED[name]()
    before, after = (graph_after(module, at, **OPTIONS) for at in ("fold-padding", "order-rows"))
    source = make_source(module)
    expected, found = (weight_gradients(graph, source, seed=0) for graph in (before, after))
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-6, msg=parameter)
    axes = sample_axes(after)
    for node in after.graph.nodes:
        if node.meta.get("direction") == "weight_grad" and node.meta["record"].binarized:
            assert axes.get(node.args[0], LEADING).outer == 1, "samples are outermost, but of a constant first state"


def test_a_scale_is_that_of_one_sample(graph_after):
    graph = graph_after(shifted(), "insert-scq", recipe="scq")
    quantized = graph.calls(fqt.quantize_samples.default)
    axes = sample_axes(graph)
    assert [shape(node) for node in quantized] == [[8, 4, 32]]
    assert all((axes[node.args[0]].axis, axes[node.args[0]].outer) == (0, 1) for node in quantized)
