"""Weights that are parts of parameters, or computed of them, stay in fp32, are listed with the reason, and train."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fqt_deploy.capture.load_model import ModelSource, model_source
from fqt_deploy.compiler.check import check_model
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.passes.other_weights import BATCH, COMPUTED, MOVED, PART
from tests.capture.following import assert_follows_pytorch

X = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 4


class Net(nn.Module):
    """A layer, what is to be looked at with parameters of these shapes, and a head."""

    def __init__(self, code, **shapes):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.code, self.head = nn.Linear(64, 64), code, nn.Linear(64, 4)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) * 0.1))

    def forward(self, x):
        return self.head(self.code(self, torch.relu(self.stem(x))))


def source(code, **shapes) -> ModelSource:
    return model_source(Net(code, **shapes), None, (X, Y))


def indexed(m, x):
    for i in (2, 0, 1):
        x = torch.relu(F.linear(x, m.w[i]))
    return x


def experts(m, x):
    return torch.relu(torch.bmm(x.expand(4, 8, 64), m.w)).mean(0)


part = PART.format(name="w")
CASES = {
    "index": (indexed, {"w": (3, 64, 64)}, {"w.2": part, "w.0": part, "w.1": part}),
    "last": (lambda m, x: x @ m.w[-1], {"w": (3, 64, 64)}, {"w.2": part}),
    "unbind": (lambda m, x: x @ m.w.unbind()[1], {"w": (3, 64, 64)}, {"w.1": part}),
    "slices": (
        lambda m, x: F.linear(x, m.w[:64]) * F.linear(x, m.w[-32:].repeat(2, 1)), {"w": (96, 64)},
        {"w.0:64": part, "w": COMPUTED},
    ),
    "chunks": (
        lambda m, x: sum(F.linear(x, w) for w in m.w.chunk(2)), {"w": (128, 64)},
        {"w.0:64": part, "w.64:128": part},
    ),
    "columns": (
        lambda m, x: F.linear(x, m.w[:, :64]) + F.linear(x, m.w[:, 64:]), {"w": (64, 128)},
        {"w.axis1.0:64": part, "w.axis1.64:128": part},
    ),
    "filters": (
        lambda m, x: F.conv2d(x.view(8, 1, 8, 8), m.w[:1], padding=1).flatten(1), {"w": (2, 1, 3, 3)}, {"w.0": part}
    ),
    "a part beside the whole": (
        lambda m, x: F.linear(F.linear(x, m.w), m.w[:32]).repeat(1, 2), {"w": (64, 64)}, {"w": None, "w.0:32": part}
    ),
    "scaled": (lambda m, x: F.linear(x, m.w * 0.5), {"w": (64, 64)}, {"w": COMPUTED}),
    "merged": (
        lambda m, x: F.linear(x, m.w + m.b @ m.a), {"w": (64, 64), "a": (8, 64), "b": (64, 8)},
        {"a": None, "w": COMPUTED},
    ),
    "experts": (experts, {"w": (4, 64, 64)}, {"w": BATCH}),
    "experts of one product": (
        lambda m, x: torch.einsum("bd,edo->beo", x, m.w).mean(1), {"w": (4, 64, 64)}, {"w": MOVED}
    ),
    "heads": (
        lambda m, x: torch.einsum("bhi,hio->bho", x.view(8, 4, 16), m.w).flatten(1), {"w": (4, 16, 16)}, {"w": BATCH}
    ),
    "a stack of weights": (
        lambda m, x: torch.bmm(x.expand(2, 8, 64), torch.stack([m.a, m.b])).mean(0),
        {"a": (64, 64), "b": (64, 64)}, {"a": COMPUTED},
    ),
    "a matrix from the left": (lambda m, x: (m.w @ x.view(8, 64, 1)).flatten(1), {"w": (64, 64)}, {"w": None}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_they_are_listed_with_the_reason(case):
    code, shapes, expected = CASES[case]
    report = check_model(source(code, **shapes), CompileOptions())
    assert report.ok
    found = {layer.path: layer for layer in report.layers if layer.path not in ("stem", "head")}
    assert found.keys() == expected.keys()
    for path, reason in expected.items():
        assert reason is None or found[path].decision == "fp32"
        assert reason in (None, found[path].reason)
        assert "test_other_weights.py" in found[path].source
    assert [layer.path for layer in report.layers if layer.path in expected] == list(expected)


def test_their_gradients_are_those_of_pytorch(tmp_path):
    """Parts, some of them read twice, others not at all; the rest of a parameter that is read in part stays."""

    def code(m, x):
        x = torch.relu(indexed(m, x) + F.linear(x, m.w[1].T))
        a, b = m.columns.split([48, 16], 1)
        x = torch.relu(F.linear(x[:, :48], a) + F.linear(x[:, 48:], b[:, :16]))
        x = torch.relu(x @ m.unread[0]) + torch.relu(torch.bmm(x.expand(4, 8, 64), m.experts)).sum(0)
        return torch.einsum("bhi,hio->bho", x.view(8, 4, 16), m.heads).flatten(1)

    given = source(
        code, w=(3, 64, 64), columns=(64, 64), unread=(2, 64, 64), experts=(4, 64, 64), heads=(4, 16, 16)
    )  # fmt: skip
    session, _ = assert_follows_pytorch(given, tmp_path / "step")
    ours = session.state_dict()
    for name, value in given.module.state_dict().items():
        torch.testing.assert_close(torch.from_numpy(ours[name]), value, rtol=1e-3, atol=2e-4)


def test_a_head_that_is_a_part_is_the_last_layer():
    """The layer before it is no head, and runs in 1 bit."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.words = nn.Linear(64, 64), nn.Linear(64, 64), nn.Parameter(torch.randn(8, 64))

        def forward(self, x):
            return F.linear(torch.relu(self.second(torch.relu(self.first(x)))), self.words[:4])

    layers = lower_model(model_source(Tied(), None, (X, Y)), CompileOptions()).train.layers
    assert {layer.path: layer.binarized for layer in layers} == {"first": True, "second": True, "words.0:4": False}


def test_attention_is_no_layer_but_learned_queries_are_multiplied_as_a_weight_is():

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.queries, self.project, self.head = (
                nn.Parameter(torch.randn(4, 64)),
                nn.Linear(64, 64),
                nn.Linear(256, 4),
            )

        def forward(self, x):
            tokens = torch.stack([x, x * 2, x * 3], 1)
            scores = self.project(self.queries) @ tokens.transpose(1, 2)
            return self.head((torch.tanh(scores) @ tokens).flatten(1))

    report = check_model(model_source(Pooled(), None, (X, Y)), CompileOptions())
    assert [layer.path for layer in report.layers] == ["project", "queries", "head"]
    assert report.layers[1].reason == COMPUTED
