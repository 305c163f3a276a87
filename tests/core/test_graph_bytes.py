"""A captured graph is the same in another process: its text, its lines, its names, and what passes make of it."""

import pickle

import pytest
import torch
from torch import nn

from fqt_deploy.capture.joint import capture_training_graph
from fqt_deploy.capture.prediction import capture_prediction_graph
from fqt_deploy.core.graph_bytes import graph_bytes, graph_of_bytes
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.core.text import graph_text
from fqt_deploy.passes.pass_base import Pipeline
from fqt_deploy.passes.pipelines import training_passes


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.MaxPool2d(2)
        self.head = nn.Linear(64 * 16, 10)

    def forward(self, x):
        x = self.pool(torch.relu(self.norm(self.conv(x))))
        return self.head(x.split([32, 32], 1)[0].repeat(1, 2, 1, 1).flatten(1))


def captured(what):
    torch.manual_seed(0)
    model, x, y = Small(), torch.randn(4, 3, 8, 8), torch.arange(4)
    if what == "training":
        return capture_training_graph(model, nn.functional.cross_entropy, (x, y))
    return capture_prediction_graph(model, x)


@pytest.mark.quick
@pytest.mark.parametrize("what", ["training", "prediction"])
def test_it_reads_back(what):
    graph = captured(what)
    read = graph_of_bytes(graph_bytes(graph), graph.state)
    assert graph_text(read) == graph_text(graph)
    pairs = list(zip(graph.graph.nodes, read.graph.nodes, strict=True))
    assert all(a.meta.get("stack_trace") == b.meta.get("stack_trace") for a, b in pairs)
    assert any("in forward" in b.meta.get("stack_trace", "") for _, b in pairs)
    for name in ("inputs", "outputs", "state", "batch", "signature", "notes", "labels", "prediction", "stage"):
        assert getattr(read, name) == getattr(graph, name), name


def test_passes_make_the_same_of_it():
    graph = captured("training")
    read = graph_of_bytes(graph_bytes(graph), graph.state)
    for each in (graph, read):
        Pipeline(training_passes(CompileOptions(activation_bits=1))).run(each)
    assert graph_text(read) == graph_text(graph)


def test_state_that_is_not_there_is_an_error():
    graph = captured("prediction")
    with pytest.raises(KeyError, match=r"param/conv\.weight"):
        graph_of_bytes(graph_bytes(graph), {})


def test_values_are_not_written():
    graph = captured("prediction")
    next(iter(graph.graph.nodes)).meta["val"] = torch.zeros(3)
    with pytest.raises(pickle.PicklingError, match="with values"):
        graph_bytes(graph)
