"""Both graphs of a model are the same, and so are its errors, whether the prediction is captured beside or behind."""

import os

import pytest
import torch
from torch import nn

from fqt_deploy.capture import capture_model as subject
from fqt_deploy.capture import forked
from fqt_deploy.capture.capture_model import capture_model
from fqt_deploy.capture.load_model import ModelSource, model_source
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.text import graph_text

pytestmark = pytest.mark.skipif(not forked._can_fork(), reason="no fork here, or one processor")


class Net(nn.Module):
    """A model that fails in the modes that it is told."""

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.fails = fails
        self.body, self.norm, self.head = nn.Linear(8, 64), nn.BatchNorm1d(64), nn.Linear(64, 4)

    def forward(self, x):
        mode = "training" if self.training else "evaluation"
        if mode in self.fails:
            raise ValueError(f"fails in {mode}")
        return self.head(torch.relu(self.norm(self.body(x))))


def source(fails: str = "") -> ModelSource:
    torch.manual_seed(0)
    return model_source(Net(fails), None, (torch.randn(4, 8), torch.arange(4)))


def in_this_process(monkeypatch) -> None:
    monkeypatch.setattr(forked, "_can_fork", lambda: False)


def captured(given: ModelSource) -> list[str]:
    return [graph_text(graph) for graph in capture_model(given)]


@pytest.fixture
def processes(monkeypatch):
    """The processes whose captured predictions this one has, in order."""
    seen = []
    original = subject.capture_prediction_graph

    def capture(*args):
        seen.append(os.getpid())
        return original(*args)

    monkeypatch.setattr(subject, "capture_prediction_graph", capture)
    return seen


def test_the_graphs_are_those_of_one_process(monkeypatch, processes):
    beside = captured(source())
    assert processes == []
    in_this_process(monkeypatch)
    assert captured(source()) == beside
    assert processes == [os.getpid()]


@pytest.mark.parametrize("fails", ["training", "evaluation", "training and evaluation"])
def test_errors_are_those_of_one_process(fails, monkeypatch):
    told = []
    for prepare in (lambda: None, lambda: in_this_process(monkeypatch)):
        prepare()
        with pytest.raises(FqtError) as error:
            capture_model(source(fails=fails))
        told.append(error.value.render())
    assert told[0] == told[1]
    assert f"fails in {fails.split()[0]}" in told[0]


def test_a_prediction_that_never_comes_is_captured_here(monkeypatch, processes):
    expected = captured(source())
    monkeypatch.setattr(forked.Forked, "result", lambda _: None)
    assert captured(source()) == expected
    assert processes == [os.getpid()]
