"""Small models, and graphs of them at any stage."""

import contextlib
import copy
import dataclasses

import pytest
import torch
from torch import nn

from fqt_deploy.capture.joint import capture_training_graph
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.verify_passes import graph_inputs
from fqt_deploy.core.optimizer import SGD
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.passes.invariants import ALWAYS
from fqt_deploy.passes.pass_base import Pipeline
from fqt_deploy.passes.pipelines import training_passes

BATCH = 8


class Normed(nn.Module):
    """Layer norm, dropout and a residual: what a transformer block has."""

    def __init__(self):
        super().__init__()
        self.norm, self.body, self.drop = nn.LayerNorm(40), nn.Linear(40, 40), nn.Dropout(0.25)
        self.head = nn.Linear(40, 4)

    def forward(self, x):
        x = x.flatten(1)[:, :40]
        return self.head(x + self.drop(torch.relu(self.body(self.norm(x)))))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4))


def staged():
    """Gradients of 640 elements a sample in the lower stage and 40 in the upper."""
    return nn.Sequential(
        nn.Conv2d(4, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, 10, 3, padding=1), nn.AvgPool2d(4), nn.Flatten(),
        nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4),
    )  # fmt: skip


def batch_normed():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(288, 4),
    )  # fmt: skip


def padded():
    """Zeros that only one side has."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 2, padding="same"), nn.Flatten(), nn.Linear(288, 4)
    )


class Turned(nn.Module):
    """A layer on rows of all samples, channel by channel."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 40), nn.Linear(160, 4)

    def forward(self, x):
        return self.head(self.body(x.flatten(2).transpose(0, 1)).transpose(0, 1).flatten(1))


MODELS = {
    "padded": padded,
    "turned": Turned,
    "batch_normed": batch_normed,
    "convolutional": convolutional,
    "dense": dense,
    "normed": Normed,
    "staged": staged,
}


@pytest.fixture(scope="session")
def make_source():
    """``make_source(name_or_module)``: the model with one batch of inputs ``[8, 4, 8, 8]`` and labels."""

    def make(model):
        torch.manual_seed(0)
        module = MODELS[model]() if isinstance(model, str) else model
        x = torch.randn(BATCH, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        return ModelSource(module, nn.functional.cross_entropy, (x, torch.arange(BATCH) % 4))

    return make


class _Contiguous(torch.fx.Interpreter):
    """Kernels write contiguous results, whatever PyTorch's strides are."""

    def run_node(self, n):
        return torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.contiguous, super().run_node(n))


@pytest.fixture(scope="session")
def weight_gradients():
    """``weight_gradients(graph, source, seed)``: what a step of SGD with rate 1 takes off the weights, by name."""

    def run(graph, source, seed):
        values = graph_inputs(graph, source, CompileOptions(optimizer=SGD(lr=1.0), seed=seed))
        with torch.no_grad():
            outputs = _Contiguous(graph.module).run(*[values[name] for name in graph.inputs])
        results = dict(zip(graph.outputs, outputs, strict=True))
        return {n: (values[n] - results[n]).double() for n in results if n.endswith("weight")}

    return run


class _StopError(Exception):
    pass


@pytest.fixture(scope="session")
def graph_after(make_source):
    """``graph_after(model, pass_name, **options)``: the training graph behind this pass; "" is as captured."""

    captured = {}

    def capture(model):
        """The graph as captured; of a model of ``MODELS`` a copy, for its trace is half of the time of these tests."""
        if model in captured:
            graph = captured[model]
            return dataclasses.replace(
                graph, module=copy.deepcopy(graph.module), inputs=[*graph.inputs], outputs=[*graph.outputs],
                state={**graph.state}, layers=[], refused={}, code_counts={},
            )  # fmt: skip
        source = make_source(model)
        graph = capture_training_graph(source.module, source.loss_fn, source.example_inputs, source.call)
        if not isinstance(model, str):
            return graph
        captured[model] = graph
        return capture(model)

    def run(model, name="", **options):
        graph = capture(model)

        def stop(passed, _graph, _seconds):
            if passed == name:
                raise _StopError

        if name:
            with contextlib.suppress(_StopError):
                Pipeline(training_passes(CompileOptions(**options)), ALWAYS, (stop,)).run(graph)
                raise AssertionError(f"there is no pass {name}")
        return graph

    return run
