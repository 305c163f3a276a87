"""Dropout of layers that have it inside is in the captured step, as in eager PyTorch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fqt_deploy.capture.joint import capture_training_graph
from fqt_deploy.ops.aten.replaced_layers import RANDOM


class _Model(nn.Module):
    def __init__(self, layer, *more):
        super().__init__()
        self.layer, self.more, self.head = layer, more, nn.LazyLinear(3)

    def forward(self, x):
        y = self.layer(x, *[x] * len(self.more))
        return self.head((y[0] if isinstance(y, tuple) else y).flatten(1))


def _captured(model, x):
    model(x)  # the lazy head gets its size
    y = torch.zeros(len(x), dtype=torch.int64)
    return capture_training_graph(model, F.cross_entropy, (x, y)), y


@pytest.mark.parametrize(
    ("kind", "both", "bias"), [(nn.LSTM, True, True), (nn.GRU, False, False), (nn.RNN, True, True)]
)
def test_between_recurrent_layers(kind, both, bias):
    """With a dropout of everything the second layer reads zeros, whatever is drawn."""
    torch.manual_seed(0)
    model = _Model(kind(5, 6, 3, bias=bias, batch_first=True, dropout=1.0, bidirectional=both))
    x = torch.randn(4, 3, 5)
    graph, y = _captured(model, x)
    given = {"x": x, "y": y, **{f"param/{name}": tensor.detach() for name, tensor in model.named_parameters()}}
    results = dict(zip(graph.outputs, graph.module(*[given[name] for name in graph.inputs]), strict=True))
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    torch.testing.assert_close(results["loss"], loss.detach())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(results[f"grad/{name}"], parameter.grad)


LAYERS = {
    "LSTM": lambda: nn.LSTM(8, 8, 2, batch_first=True, dropout=0.5),
    "GRU": lambda: nn.GRU(8, 8, 2, batch_first=True, dropout=0.5),
    "attention": lambda: nn.MultiheadAttention(8, 2, 0.5, batch_first=True),
    "encoder": lambda: nn.TransformerEncoderLayer(8, 2, 8, 0.5, batch_first=True),
    "alpha": lambda: nn.AlphaDropout(0.5),
    "channels": lambda: nn.Dropout1d(0.5),
}


@pytest.mark.parametrize("name", LAYERS)
def test_what_draws_numbers_draws_them_in_the_captured_step(name):
    model = _Model(LAYERS[name](), *[None] * 2 * (name == "attention"))
    graph, _ = _captured(model, torch.randn(4, 6, 8))
    assert graph.calls(*RANDOM)
