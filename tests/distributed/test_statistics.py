"""Batch normalization over several processes: decomposed as a step has it, on threads that exchange as processes do."""

import pytest
import torch
from torch import nn

from fqt_deploy.capture.joint import capture_training_graph
from fqt_deploy.capture.load_model import model_source
from fqt_deploy.compiler.verify_passes import graph_inputs
from fqt_deploy.core.graph import grids_of
from fqt_deploy.core.text import parse_graph
from fqt_deploy.passes.invariants import ALWAYS
from fqt_deploy.passes.pass_base import Pipeline
from fqt_deploy.passes.pass_names import parse_passes
from fqt_deploy.passes.pipelines import training_passes
from fqt_deploy.runtime.group import rank_seed
from fqt_deploy.settings import options_of
from tests.distributed.threads import Process, Threads

fqt = torch.ops.fqt

FORWARD = """
graph stage=lowered batch={rows}
input %x = x : f32[{rows}, 3, 5]
param %w = param/w : f32[5]
param %b = param/b : f32[5]
buffer %rm = buffer/rm : f32[5]
buffer %rv = buffer/rv : f32[5]
%n = fqt.batch_norm(%x, %w, %b, %rm, %rv, 0.1, 1e-05, synchronized=True)
%y = %n[0]
%mean = %n[1]
%inverse = %n[2]
%rm2 = %n[3]
%rv2 = %n[4]
output y = %y
output mean = %mean
output inverse = %inverse
output buffer/rm = %rm2
output buffer/rv = %rv2
""".lstrip()
BACKWARD = """
graph stage=lowered batch={rows}
input %g = g : f32[{rows}, 3, 5]
input %x = x : f32[{rows}, 3, 5]
param %w = param/w : f32[5]
param %mean = param/mean : f32[5]
param %inverse = param/inverse : f32[5]
%n = fqt.batch_norm_backward(%g, %x, %w, %mean, %inverse, {projected}, synchronized=True)
%dx = %n[0]
%dw = %n[1]
%db = %n[2]
output dx = %dx
output dw = %dw
output db = %db
""".lstrip()


def decomposed(text, **values):
    return Pipeline(parse_passes("decompose-composites"), ALWAYS).run(parse_graph(text.format(**values)))


def on_parts(text, parts, whole, **values):
    """The results of each process for its rows of the first ``parts`` operands, and of the others as they are."""
    threads = Threads(2)
    operands = [(*own, *whole[parts:]) for own in zip(*(tensor.split([4, 2]) for tensor in whole[:parts]), strict=True)]
    graphs = [decomposed(text, rows=len(own[0]), **values) for own in operands]
    found = threads.run(lambda rank: Process(graphs[rank].module, threads, rank).run(*operands[rank]))
    assert threads.messages == [1, 1], "one message for each layer and direction"
    return found


@pytest.fixture
def values():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 5, generator=g) * 2 + torch.tensor([0, 1, -3, 100.0, 0.01])
    x[4:] += 1  # the processes' own means differ
    weight, bias, mean = (torch.randn(5, generator=g) for _ in range(3))
    return x, weight, bias, mean, torch.rand(5, generator=g) + 0.5, torch.randn(6, 3, 5, generator=g)


def test_forward_is_that_of_all_rows(values):
    """Of a process of four samples and one of two; running statistics have the same bits in both."""
    *operands, _ = values
    whole = fqt.batch_norm(*operands, 0.1, 1e-5)
    first, second = on_parts(FORWARD, 1, operands)
    torch.testing.assert_close(torch.cat([first[0], second[0]]), whole[0], rtol=1e-4, atol=1e-4)
    for ours, theirs, expected in zip(first[1:], second[1:], whole[1:], strict=True):
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("projected", [False, True])
def test_backward_is_that_of_all_rows(values, projected):
    """All rows, and those that a selection kept: the projection goes over what all processes have kept."""
    x, weight, *_, gradient = values
    mean, variance = x.flatten(0, 1).mean(0), x.flatten(0, 1).var(0, correction=0)
    if projected:  # then the rows are only some of those that the statistics are of
        mean, variance = mean + 0.2, variance * 1.1
    operands = (gradient, x, weight, mean, (variance + 1e-5).rsqrt())
    dx, dweight, dbias = fqt.batch_norm_backward(*operands, projected)
    first, second = on_parts(BACKWARD, 2, operands, projected=projected)
    torch.testing.assert_close(torch.cat([first[0], second[0]]), dx, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first[1] + second[1], dweight, rtol=1e-4, atol=1e-4)  # summed up like all gradients
    torch.testing.assert_close(first[2] + second[2], dbias, rtol=1e-5, atol=1e-5)


BATCH = 16


def batch():
    """A batch whose halves have other statistics."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, 4, 6, 6, generator=g)
    x[BATCH // 2 :] += 0.5
    return x, torch.randint(0, 4, (BATCH,), generator=g)


class Steps:
    """The step of a network with batch normalization, for one process or as many as have a part of the batch."""

    def __init__(self, parts, grids=None, **options):
        self.options = options_of({"optimizer": "sgd", "lr": 1.0, "distributed": "fp32", **options})
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Flatten(), nn.Linear(108, 4),
        )  # fmt: skip
        self.parts, source = parts, model_source(module, nn.functional.cross_entropy, parts[0])
        self.graph = capture_training_graph(source.module, source.loss_fn, source.example_inputs, source.call)
        self.names = [spec.name for spec in source.call.signature]
        self.graph.example = dict(zip(self.names, source.example_inputs, strict=True))
        Pipeline(training_passes(self.options, grids), ALWAYS).run(self.graph)
        self.values = graph_inputs(self.graph, source, self.options)
        self.grids = grids_of(self.graph.layers)

    def gradient(self, seed=0, *, together=True):
        """The mean over the processes of the gradients of all weights, with statistics of all of them or of each."""
        threads = Threads(len(self.parts))

        def run(rank):
            given = {**self.values, **dict(zip(self.names, self.parts[rank], strict=True))}
            given["seed"] = torch.tensor(rank_seed(seed, rank))
            process = Process(self.graph.module, threads if together else Threads(1), rank if together else 0)
            with torch.no_grad():
                results = process.run(*[given[name] for name in self.graph.inputs])
            found = dict(zip(self.graph.outputs, results, strict=True))
            return torch.cat([(given[n] - found[n]).double().flatten() for n in sorted(found) if "weight" in n])

        return sum(threads.run(run)) / len(self.parts)


def halves():
    return list(zip(*(tensor.chunk(2) for tensor in batch()), strict=True))


@pytest.fixture(scope="module")
def whole():
    """The step on the whole batch, with gradients in float32, and its gradient."""
    steps = Steps([batch()], recipe="none")
    return steps, steps.gradient()


def distance(gradient, true):
    return float((gradient - true).square().sum() / true.square().sum())


@pytest.mark.thorough
def test_gradients_in_float32_are_those_of_the_whole_batch(whole):
    """With statistics of their own two processes have another gradient: it is these that make the difference."""
    steps, true = whole
    two = Steps(halves(), steps.grids, recipe="none", batch_norm="synchronized")
    assert distance(two.gradient(), true) < 1e-12
    assert distance(two.gradient(together=False), true) > 0.1


@pytest.mark.parametrize(
    ("draws", "options"),
    [
        (6, {"recipe": "scq"}),
        pytest.param(24, {"recipe": "psq-8"}, marks=pytest.mark.thorough),
        pytest.param(24, {"recipe": "scq", "projection": "off"}, marks=pytest.mark.thorough),
        pytest.param(40, {"agp": "sampled"}, marks=pytest.mark.thorough),
        pytest.param(40, {"agp": "once"}, marks=pytest.mark.thorough),
        pytest.param(40, {"agp": "nested"}, marks=pytest.mark.thorough),
    ],
    ids=lambda given: "-".join(given.values()) if isinstance(given, dict) else None,
)
def test_quantized_gradients_have_no_bias(whole, draws, options):
    """The mean over draws is the gradient of the whole batch, up to what its variance explains.

    With ``--projection auto`` too, which takes out of each process's gradient what is zero in the sum alone.
    """
    steps, true = whole
    two = Steps(halves(), steps.grids, batch_norm="synchronized", **options)
    found = torch.stack([two.gradient(seed) for seed in range(draws)])
    explained = float(found.var(0).sum() / draws / true.square().sum())
    assert explained < 0.1, "draws are many enough for the test to mean something"
    assert distance(found.mean(0), true) < 3 * explained
