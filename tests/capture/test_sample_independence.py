"""Definitions prove of usual models that samples are independent, and of none that mixes them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fqt_deploy.capture.prediction import capture_prediction_graph
from fqt_deploy.capture.sample_independence import samples_are_independent
from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import meta_tensor
from fqt_deploy.ops.aten.replaced_layers import REPLACED_LAYERS
from fqt_deploy.ops.traits import LEADING

aten = torch.ops.aten
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


CALLS = {
    aten.convolution.default: (
        (X, random(6, 3, 3, 3), random(6), [2, 1], [1, 0], [1, 1], False, [0, 0], 1),
        (X, random(3, 2, 3, 3), None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
    ),
    aten._native_batch_norm_legit_no_training.default: (
        (X, random(3), random(3), random(3), random(3).abs(), 0.1, 1e-5),
    ),
    aten.max_pool2d_with_indices.default: ((X, [3, 3], [2, 2], [1, 1]),),
    aten.addmm.default: ((random(5), random(4, 7), random(7, 5)),),
    aten.mm.default: ((random(4, 7), random(7, 5)),),
}


@pytest.mark.parametrize(("target", "args"), [(t, args) for t, calls in CALLS.items() for args in calls])
def test_taking_samples_of_a_layer_that_is_replaced_takes_those_of_its_result(target, args):
    graph = torch.fx.Graph()
    nodes = [graph.placeholder(f"x{i}") if isinstance(a, torch.Tensor) else a for i, a in enumerate(args)]
    node = graph.call_function(target, tuple(nodes))
    for operand, value in zip(nodes, args, strict=True):
        if isinstance(operand, torch.fx.Node):
            operand.meta["val"] = meta_tensor(value.shape, value.dtype)
    batched = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor) and a.shape[0] == 4]
    rule = REPLACED_LAYERS[target]
    aligned = rule(call_of(node), {nodes[i]: LEADING for i in batched}.get, 4)
    assert aligned is not None
    assert aligned.result == LEADING
    assert aligned.operands == {nodes[i]: LEADING for i in batched}
    assert rule(call_of(node), {}.get, 4) is None
    order = torch.tensor([2, 0])
    taken = [a[order] if i in batched else a for i, a in enumerate(args)]
    for some, whole in zip(
        *(r if isinstance(r, tuple) else (r,) for r in (target(*taken), target(*args))), strict=True
    ):
        if whole.numel():
            torch.testing.assert_close(some, whole[order])


def test_every_rule_has_a_call():
    assert CALLS.keys() == REPLACED_LAYERS.keys()


class Predicting(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.conv, self.norm, self.head, self.code = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5), forward

    def forward(self, x):
        return self.code(self, F.max_pool2d(F.relu(self.norm(self.conv(x))), 2))


INDEPENDENT = {
    "convolutional": lambda m, x: m.head(x.mean((2, 3))),
    "with a shortcut": lambda m, x: m.head((x + x.flip(2)).flatten(2).amax(2)),
    "rows of a sample": lambda m, x: m.head(x.permute(0, 2, 3, 1).reshape(-1, 4)),
}
MIXING = {
    "mean": lambda m, x: m.head(x.mean((2, 3)) - x.mean()),
    "a gate of the whole batch": lambda m, x: m.head(x.mean((2, 3))) * m.head(x.mean((0, 2, 3))),
    "flip": lambda m, x: m.head(x.mean((2, 3)).flip(0)),
    "a product of samples": lambda m, x: x.mean((2, 3)) @ x.mean((2, 3)).T,
    "samples as channels": lambda m, x: m.head(x.transpose(0, 1).mean((2, 3))),
    "the other half": lambda m, x: (
        m.head(x.mean((2, 3))) + m.head(x.mean((2, 3)).unflatten(0, (2, 2))[:, 0].repeat(2, 1))
    ),
}


def captured(forward, monkeypatch):
    monkeypatch.setattr("fqt_deploy.capture.prediction.refuse_mixed_samples", lambda *_: None)
    return capture_prediction_graph(Predicting(forward), X)


@pytest.mark.parametrize("case", INDEPENDENT)
def test_independent_samples_are_proved(case, monkeypatch):
    assert samples_are_independent(captured(INDEPENDENT[case], monkeypatch))


@pytest.mark.parametrize("case", MIXING)
def test_of_mixed_samples_nothing_is_proved(case, monkeypatch):
    assert not samples_are_independent(captured(MIXING[case], monkeypatch))


def test_what_is_proved_is_not_run(monkeypatch):
    monkeypatch.setattr("fqt_deploy.capture.check_prediction._run", lambda *_: pytest.fail("was run"))
    capture_prediction_graph(Predicting(INDEPENDENT["convolutional"]), X)
