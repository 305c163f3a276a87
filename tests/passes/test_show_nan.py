"""A NaN that only gradients hold is in the loss, whatever quantizes them."""

import pytest
import torch
from torch import nn

from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.core.graph import shape
from fqt_deploy.core.options import CompileOptions

RECIPES = [{"recipe": "psq-8"}, {"recipe": "psq-1"}, {"recipe": "scq"}, {"agp": "topk"}, {"agp": "nested"}]


def finite_with_nan_gradients(logits, y):
    """A finite loss whose gradient is infinity times zero: NaN."""
    return nn.functional.cross_entropy(logits, y) + (logits * 0).sqrt().sum()


def placeholders(graph):
    return [(name, graph.placeholder(name)) for name in graph.inputs]


def results_of(loss_fn, settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    source = ModelSource(model, loss_fn, (torch.randn(8, 64), torch.arange(8)))
    graph = lower_model(source, CompileOptions(**settings)).train
    given = {name: torch.zeros(shape(node), dtype=node.meta["val"].dtype) for name, node in placeholders(graph)}
    given |= {name: tensor.initial.detach().clone() for name, tensor in graph.state.items()}
    given |= {spec.name: x for spec, x in zip(graph.signature, source.example_inputs, strict=True)}
    with torch.no_grad():
        return dict(zip(graph.outputs, graph.module(*[given[name] for name in graph.inputs]), strict=True))


@pytest.mark.quick(2)
@pytest.mark.parametrize("settings", RECIPES, ids=lambda settings: "-".join(settings.values()))
def test_nan_in_quantized_gradients_is_shown(settings):
    results = results_of(finite_with_nan_gradients, settings)
    assert torch.isfinite(results["logits"]).all()
    assert torch.isnan(results["loss"])


def test_finite_gradients_leave_the_loss_as_it_is():
    assert torch.isfinite(results_of(nn.functional.cross_entropy, {"recipe": "psq-1"})["loss"])
