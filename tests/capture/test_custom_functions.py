"""A ``torch.autograd.Function`` of the user's keeps the backward that it was written with."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fqt_deploy.capture.custom_functions import custom_functions, functions_as_ops, refuse_functions_in_place
from fqt_deploy.capture.joint import capture_training_graph
from fqt_deploy.capture.prediction import capture_prediction_graph
from fqt_deploy.core.diagnostics import FqtError

X = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 1])


class StraightThroughSign(torch.autograd.Function):
    """Signs whose gradient passes where the operand is small."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


class MemoryEfficientSwish(torch.autograd.Function):
    """Swish that keeps its operand alone, with parts of the step under names of their own."""

    @staticmethod
    def forward(x):
        return x * torch.sigmoid(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return gradient * (gate * (1 + x * (1 - gate)))


class Reversed(torch.autograd.Function):
    """The identity, whose gradient is turned around by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.factor * gradient, None


class Halves(torch.autograd.Function):
    """Two results of two operands, with gradients that are no derivatives; the third operand gets none."""

    @staticmethod
    def forward(ctx, x, y, mask):
        ctx.mark_non_differentiable(mask)
        return x[:, :6] * y, x[:, 6:] + y, mask

    @staticmethod
    def backward(ctx, first, second, _):
        return torch.cat([first, 2 * second], 1), 3 * first - second, None


class ThroughAnother(torch.autograd.Function):
    """A Function within a Function."""

    @staticmethod
    def forward(ctx, x):
        return StraightThroughSign.apply(x) * 2

    @staticmethod
    def backward(ctx, gradient):
        return 5 * gradient


class InPlace(torch.autograd.Function):
    """A Function that changes its operand."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.clamp_(0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def halves(m, x):
    mask = torch.ones(4, 6)
    first, second, mask = Halves.apply(x, m.scale, mask)
    return torch.cat([first, second * mask], 1)


CASES = {
    "straight-through": lambda m, x: StraightThroughSign.apply(x),
    "beside a residual": lambda m, x: x + StraightThroughSign.apply(x),
    "setup_context": lambda m, x: MemoryEfficientSwish.apply(x),
    "number": lambda m, x: Reversed.apply(x, 0.3),
    "several": halves,
    "nested": lambda m, x: ThroughAnother.apply(x),
    "twice": lambda m, x: StraightThroughSign.apply(StraightThroughSign.apply(x) + x) + Reversed.apply(x, 2.0),
    "of a parameter": lambda m, x: F.linear(x, StraightThroughSign.apply(m.square)) * m.scale.mean(),
    "checkpointed": lambda m, x: torch.utils.checkpoint.checkpoint(MemoryEfficientSwish.apply, x, use_reentrant=False),
}


class Model(nn.Module):
    def __init__(self, middle):
        super().__init__()
        self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 3)
        self.scale = nn.Parameter(torch.randn(6))
        self.square = nn.Parameter(torch.randn(12, 12))
        self.middle = middle

    def forward(self, x):
        return self.b(self.middle(self, self.a(x)))


@pytest.mark.quick(5)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_written_backward(case):
    torch.manual_seed(1)
    model = Model(CASES[case])
    graph = capture_training_graph(model, F.cross_entropy, (X, Y))
    loss = F.cross_entropy(model(X), Y)
    expected = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    given = {"x": X, "y": Y, **{name: tensor.initial for name, tensor in graph.state.items()}}
    results = dict(zip(graph.outputs, graph.module(*(given[name] for name in graph.inputs)), strict=True))
    torch.testing.assert_close(results["loss"], loss)
    gradients = {name: g for (name, _), g in zip(model.named_parameters(), expected, strict=True) if g is not None}
    for name, gradient in gradients.items():
        torch.testing.assert_close(results[f"grad/{name}"], gradient)
    assert gradients["a.weight"].abs().sum() > 0
    assert not [node for node in graph.graph.nodes if "custom_function" in str(node.target)]
    predicted = capture_prediction_graph(model, X)
    (logits,) = predicted.module(*(given[name] for name in predicted.inputs))
    torch.testing.assert_close(logits, model(X))


def test_nodes_of_a_function_know_their_layer_and_line():
    class Activation(nn.Module):
        def forward(self, x):
            return StraightThroughSign.apply(x)

    model = nn.Sequential(nn.Linear(12, 12), Activation(), nn.Linear(12, 3))
    graph = capture_training_graph(model, F.cross_entropy, (X, Y))
    (sign,) = graph.calls(torch.ops.aten.sign.default)
    assert sign.meta["layer"] == "1"
    assert sign.meta["phase"] == "forward"
    (passed,) = graph.calls(torch.ops.aten.le.Scalar)
    assert passed.meta["phase"] == "backward"


def test_a_function_that_changes_its_operand_is_refused():
    with pytest.raises(FqtError, match=r"FQT104: .*InPlace changes its input in place") as caught:
        capture_training_graph(Model(lambda m, x: InPlace.apply(x * 1)), F.cross_entropy, (X, Y))
    assert caught.value.location is not None
    assert caught.value.location.path.name == "test_custom_functions.py"


@pytest.mark.parametrize("stand_in", [functions_as_ops, refuse_functions_in_place])
def test_a_thread_that_captures_nothing_calls_its_functions_as_before(stand_in):
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark_dirty(x)
            return x.mul_(2)

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2

    found = []

    def train():
        x = torch.ones(3, requires_grad=True)
        Doubled.apply(x * 1).sum().backward()
        found.append(x.grad)

    with custom_functions(), stand_in():
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
    assert torch.equal(found[0], torch.full((3,), 2.0))
