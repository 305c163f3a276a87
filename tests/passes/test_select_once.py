"""One selection for the whole backward: what runs on the kept samples is what the others, zeroed, would give."""

import pytest
import torch
from torch import nn

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import Emitter, shape
from fqt_deploy.core.optimizer import SGD
from fqt_deploy.passes.batch_axis import samples_back, samples_first
from fqt_deploy.passes.insert_scq import random_key
from fqt_deploy.passes.select_once import SelectOnce, plan_selection
from tests.passes.selection_models import SELECTED, Folded, Heads

aten = torch.ops.aten
fqt = torch.ops.fqt
OPTIONS = {"agp": "once", "grad_bits": 4, "optimizer": SGD(lr=1.0)}


def mask_at_the_root(graph):
    """Scale the kept samples of the selected gradient and make the others zero, as the selection says."""
    plan = plan_selection(graph)
    root, where = plan.root, plan.places[plan.root]
    users = list(root.users)
    emit = Emitter(graph, root.next)
    rows = samples_first(emit, root, where, graph.batch)
    key = random_key(emit, graph, len(graph.layers), "select_once")
    drawn = emit(fqt.select_sampled.default, SelectOnce().score(emit, rows), key, graph.batch // 4)
    weight = emit(fqt.scatter_rows.default, emit.item(drawn, 2), emit.item(drawn, 1))
    shaped = emit(aten.view.default, weight, [graph.batch, *[1] * (len(shape(rows)) - 1)])
    masked = samples_back(emit, emit(aten.mul.Tensor, rows, shaped), shape(root))
    for user in users:
        user.replace_input_with(root, masked)
    graph.module.recompile()
    return plan


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", SELECTED)
def test_backward_on_kept_samples_is_backward_with_the_others_zero(name, graph_after, make_source, weight_gradients):
    torch.manual_seed(0)
    module = SELECTED[name]()
    full, shrunk = (graph_after(module, at, **OPTIONS) for at in ("binarize-forward", "select-once"))
    mask_at_the_root(full)
    source = make_source(module)
    expected, found = (weight_gradients(graph, source, seed=3) for graph in (full, shrunk))
    assert expected.keys() == found.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-6, msg=parameter)
    assert shrunk.selection == "once"
    assert any(n.meta.get("samples") == 2 for n in shrunk.graph.nodes)


@pytest.mark.quick(per="model")
@pytest.mark.parametrize(("model", "said"), [(Heads, "bypasses"), (Folded, "batch"), ("small", "normalization")])
@pytest.mark.parametrize("agp", ["once", "nested"])
def test_what_does_not_fit_is_refused_if_named_and_sampled_if_not(model, said, agp, graph_after):
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(256, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 40), nn.BatchNorm1d(40),
        nn.Linear(40, 4),
    ) if model == "small" else model()  # fmt: skip
    with pytest.raises(FqtError, match=said) as caught:
        graph_after(module, f"select-{agp}", agp=agp, grad_bits=4)
    assert caught.value.code == "FQT205"
    assert model == "small" or caught.value.location is not None
    graph = graph_after(module, "sink-scatter", grad_bits=4)
    assert graph.selection == "sampled"
    assert graph.selection_note.startswith("not nested: ")
    assert said in graph.selection_note


def test_once_is_taken_where_nested_selections_leave_batch_normalization_too_little(graph_after):
    """Eight samples by three: nested selections round down to two, one selection keeps three."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(256, 40), nn.ReLU(), nn.Linear(40, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 4)
    )
    graph = graph_after(model, "insert-agp")
    assert graph.selection == "once"
    assert "2 of 8 samples leave 2 values a channel" in graph.selection_note
