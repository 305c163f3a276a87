"""The text of a graph is the graph: it reads back after every pass, and the next pass then does the same."""

import re
from pathlib import Path

import pytest
import torch

from fqt_deploy.capture.joint import capture_training_graph
from fqt_deploy.capture.load_model import load_model
from fqt_deploy.capture.prediction import capture_prediction_graph
from fqt_deploy.compiler.verify_passes import graph_inputs
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.core.text import graph_text, parse_graph
from fqt_deploy.passes.invariants import ALWAYS
from fqt_deploy.passes.pass_base import Pipeline
from fqt_deploy.passes.pipelines import prediction_passes, training_passes
from tools.examples import PACKAGES

EXAMPLES = sorted(path.stem for path in (Path(__file__).parents[2] / "examples").glob("*.py"))
RECIPES = {
    "none": {"recipe": "none"},
    "psq-8": {"recipe": "psq-8"},
    "psq-1": {"recipe": "psq-1"},
    "scq": {"recipe": "scq", "grad_bits": 2, "grid": "minmax", "projection": "off"},
    "sampled": {"agp": "sampled"},
    "topk": {"agp": "topk"},
    "once": {"agp": "once", "remat": "auto"},
    "nested": {"agp": "nested"},
}


def numbered(text):
    """``text`` with its values named in the order in which they occur."""
    names = {}
    return re.sub(r"%[A-Za-z_]\w*", lambda match: names.setdefault(match[0], f"%{len(names)}"), text)


def read_back(graph):
    return parse_graph(graph_text(graph), values={name: tensor.initial for name, tensor in graph.state.items()})


@pytest.mark.quick
@pytest.mark.parametrize(
    ("model", "recipe"),
    [
        ("convolutional", "sampled"), ("normed", "scq"), ("staged", "nested"),
        *(pytest.param(*rare, marks=pytest.mark.slow)
          for rare in [("batch_normed", "scq"), ("dense", "topk"), ("dense", "once"), ("dense", "none")]),
    ],
)  # fmt: skip
def test_every_pass_does_the_same_to_what_is_read_back(make_source, model, recipe):
    source = make_source(model)
    graph = capture_training_graph(source.module, source.loss_fn, source.example_inputs, source.call)
    for current in training_passes(CompileOptions(**RECIPES[recipe])):
        copy = read_back(graph)
        assert graph_text(copy) == graph_text(graph)
        for each in (graph, copy):
            Pipeline((current,), ALWAYS).run(each)
        assert numbered(graph_text(copy)) == numbered(graph_text(graph)), (
            f"{current.name} reads what is not in the text"
        )


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", ["", "check-operators", "sink-scatter", "fold-packing"])
def test_what_is_read_back_computes_the_same(make_source, graph_after, name):
    graph = graph_after("convolutional", name, agp="sampled")
    copy = read_back(graph)
    values = graph_inputs(graph, make_source("convolutional"), CompileOptions(seed=3))
    with torch.no_grad():
        expected, found = ([o.clone() for o in run(g, values)] for g in (graph, copy))
    assert len(expected) == len(graph.outputs)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def run(graph, values):
    return _Contiguous(graph.module).run(*[values[name].clone() for name in graph.inputs])


class _Contiguous(torch.fx.Interpreter):
    """Kernels write contiguous results, whatever PyTorch's strides are."""

    def run_node(self, n):
        return torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.contiguous, super().run_node(n))


def stages(source, options):
    """The training graph's texts whenever a stage is done, and the prediction graph's."""
    graph = capture_training_graph(source.module, source.loss_fn, source.example_inputs, source.call)
    predict = capture_prediction_graph(source.module, source.example_inputs, source.call)
    texts = {"captured": graph_text(graph)}

    def observe(_name, now, _seconds):
        texts[now.stage] = graph_text(now)

    Pipeline(training_passes(options), ALWAYS, (observe,)).run(graph)
    Pipeline(prediction_passes(graph.layers), ALWAYS).run(predict)
    return [*texts.values(), graph_text(predict)]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("example", "recipe"),
    [
        pytest.param(example, recipe, marks=() if (example, recipe) == ("digits_cnn", "sampled") else pytest.mark.slow)
        for example in EXAMPLES
        for recipe in RECIPES
    ],
)
def test_every_stage_of_every_example_reads_back(example, recipe):
    if example in PACKAGES:
        pytest.importorskip(PACKAGES[example])
    source = load_model(Path(__file__).parents[2] / "examples" / f"{example}.py", batch=8)
    for text in stages(source, CompileOptions(**RECIPES[recipe])):
        assert graph_text(parse_graph(text)) == text
