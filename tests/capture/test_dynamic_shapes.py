"""Shapes and numbers that depend on values are refused with the line and with what to write instead."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fqt_deploy.capture.joint import capture_training_graph
from fqt_deploy.core.diagnostics import FqtError

X, Y = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4


class Model(nn.Module):
    def __init__(self, code):
        super().__init__()
        self.a, self.b, self.code = nn.Linear(8, 8), nn.Linear(8, 4), code

    def forward(self, x):
        return self.code(self, self.a(x))


def branch(m, h):
    return m.b(h * 2) if h.sum() > 0 else m.b(h)


REFUSED = {
    "a mask as index": (lambda m, h: m.b(h) * h[h > 0].mean(), "torch.where(mask, x, 0)"),
    "masked_select": (lambda m, h: m.b(h) * torch.masked_select(h, h > 0).sum(), "torch.where(mask, x, 0)"),
    "nonzero": (lambda m, h: m.b(h) + (h > 0).nonzero().float().mean(), "torch.where(mask, x, 0)"),
    "unique": (lambda m, h: m.b(h) + torch.unique(h.round()).sum(), "one_hot"),
    "item": (lambda m, h: m.b(h) * h.detach().max().item(), "without .item()"),
    "a branch": (branch, "torch.where"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_values_is_refused_with_what_to_write(name):
    code, said = REFUSED[name]
    with pytest.raises(FqtError, match="FQT104") as caught:
        capture_training_graph(Model(code), F.cross_entropy, (X, Y))
    assert said in caught.value.hint
    assert caught.value.location is not None
    assert caught.value.location.path.name == "test_dynamic_shapes.py"


def test_a_choice_of_fixed_shape_is_captured():
    graph = capture_training_graph(Model(lambda m, h: m.b(torch.where(h > 0, h, 0.0))), F.cross_entropy, (X, Y))
    assert graph.outputs[0] == "loss"
