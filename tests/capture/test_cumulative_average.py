"""Batch normalization without a momentum keeps the mean over all batches, as in eager PyTorch."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fqt_deploy
from fqt_deploy.capture.joint import capture_training_graph

Y = torch.arange(6) % 4
COUNTER = "norm.num_batches_tracked"


class Net(nn.Module):
    """A convolution, batch normalization without a momentum, called once or twice, and a head."""

    def __init__(self, calls=1, **options):
        super().__init__()
        self.body, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None, **options)
        self.head, self.calls = nn.Linear(8, 4), calls

    def forward(self, x):
        h = self.body(x)
        for _ in range(self.calls):
            h = torch.relu(self.norm(h) + 0.1)
        return self.head(h.mean((2, 3)))


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 3, 7, 7, generator=generator) * (i + 1) + i for i in range(count)]


def eager_steps(model, xs):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for x in xs:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), Y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("calls", "options"), [(1, {}), (2, {}), (1, {"affine": False})])
def test_the_captured_step_moves_the_buffers_as_eager_pytorch(calls, options):
    """Each call counts as a batch, and a counter that is not 0 goes on."""
    torch.manual_seed(0)
    model = Net(calls, **options)
    eager_steps(model, batches(2))
    (x,) = batches(1)
    graph = capture_training_graph(model, F.cross_entropy, (x, Y))
    inputs = [graph.state[n].initial if n in graph.state else {"x": x, "y": Y}[n] for n in graph.inputs]
    results = dict(zip(graph.outputs, graph.module(*inputs), strict=True))
    model(x)
    assert int(model.norm.num_batches_tracked) == 3 * calls
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(results[f"buffer/{name}"], buffer)


def test_four_steps_a_checkpoint_and_predictions_equal_eager_pytorch(tmp_path):
    torch.manual_seed(0)
    model, xs = Net(), batches(4)
    eager = copy.deepcopy(model)
    step = fqt_deploy.compile(
        model,
        F.cross_entropy,
        example_inputs=(xs[0], Y),
        recipe="none",
        exclude=("*",),
        optimizer=fqt_deploy.SGD(lr=0.1),
    )
    ours = [step.step(x, Y) for x in xs[:2]]
    step.save_checkpoint(tmp_path / "two.safetensors")
    for x in xs:
        step.step(x, Y)
    step.load_checkpoint(tmp_path / "two.safetensors")
    ours += [step.step(x, Y) for x in xs[2:]]
    np.testing.assert_allclose(ours, eager_steps(eager, xs), rtol=1e-5)
    state = step.state_dict()
    assert int(state[COUNTER]) == 4
    for name, value in eager.state_dict().items():
        np.testing.assert_allclose(state[name], value.numpy(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(step.predict(xs[0]), eager.eval()(xs[0]).numpy(), rtol=1e-4, atol=1e-4)
