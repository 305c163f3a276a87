"""Which layers run on bits: decided by what makes the logits, once, for the training step and prediction."""

import pytest
import torch
from torch import nn

from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import CompileOptions
from tests.passes.selection_models import Heads, Matrices, Recurrent, pixels
from tests.passes.training_graphs import graph_of


def binarized(graph):
    return {record.path: record.binarized for record in graph.layers}


def test_a_convolution_that_makes_the_logits_is_the_last_layer(graph_after):
    graph = graph_after(pixels(), "annotate-layers")
    assert binarized(graph) == {"0": False, "2": True, "4": False}
    assert graph.layer("4").reason == "a contraction over 8 elements is too short to gain"
    wide = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 1), nn.Flatten()
    )
    assert graph_after(wide, "annotate-layers").layer("4").reason == "the last convolution stays in fp32"


def test_layers_behind_dropout_run_on_bits(graph_after):
    """Dropout is replaced later; each element keeps its place, and so do the samples."""
    model = nn.Sequential(
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 8)
    )
    x = torch.randn(4, 1, 8, 8)
    graph = graph_of(model, (x, torch.zeros(4, dtype=torch.int64)), before="replace-dropout")
    assert binarized(graph) == {"2": True, "5": False}


def test_a_linear_layer_inside_is_not_the_last_one(graph_after):
    """The list of layers ends with one that a gate calls; the logits come from a convolution."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.gate = nn.Conv2d(4, 64, 1), nn.Conv2d(64, 4, 1), nn.Linear(64, 64)

        def forward(self, x):
            h = torch.relu(self.first(x))
            return self.last(h * torch.sigmoid(self.gate(h.mean((2, 3))))[..., None, None]).mean((2, 3))

    assert binarized(graph_after(Gated(), "annotate-layers")) == {"first": False, "gate": True, "last": False}


def test_every_head_is_last(graph_after):
    assert binarized(graph_after(Heads(), "annotate-layers")) == {
        "first": True, "second": True, "head": False, "early": False,
    }  # fmt: skip


def test_of_residual_branches_only_the_last_makes_the_logits(graph_after):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))

        def forward(self, x):
            x = x.flatten(2)
            for layer in self.layers:
                x = x + torch.relu(layer(x))
            return x.flatten(1)

    assert list(binarized(graph_after(Residual(), "annotate-layers")).values()) == [True, True, False]


def test_weights_that_lie_the_other_way_are_layers(graph_after):
    graph = graph_after(Matrices(), "annotate-layers")
    assert binarized(graph) == {"first": True, "w": True, "v": False}
    assert [record.turned for record in graph.layers] == [False, True, True]
    marks = {(n.meta["layer"], n.meta["direction"]) for n in graph.graph.nodes if "direction" in n.meta}
    assert {("w", "forward"), ("w", "input_grad"), ("w", "weight_grad")} <= marks


def test_a_matrix_that_is_multiplied_both_ways_stays_in_fp32(graph_after):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.head = nn.Parameter(torch.randn(256, 256)), nn.Linear(256, 3)

        def forward(self, x):
            return self.head(torch.relu(x.flatten(1) @ self.w) @ self.w.T)

    record = graph_after(Both(), "annotate-layers").layer("w")
    assert not record.binarized
    assert record.reason == "its weight is multiplied as [in, out] in one place and as [out, in] in another"


def test_steps_of_a_recurrence_are_one_layer(graph_after):
    graph = graph_after(Recurrent(nn.LSTM), "annotate-layers")
    assert binarized(graph) == {"recurrent.weight_ih_l0": True, "recurrent.weight_hh_l0": True, "head": False}


def test_prediction_binarizes_what_the_step_does(make_source):
    """Alone, prediction would find other layers to be last: a head is missing there."""
    source = make_source(Heads())
    lowered = lower_model(ModelSource(source.module, source.loss_fn, source.example_inputs), CompileOptions())
    expected = binarized(lowered.train)
    assert binarized(lowered.predict) == {path: expected[path] for path in ("first", "second", "head")}


class Shared(nn.Module):
    """Tokens across which a layer multiplies: without gradients PyTorch repeats its weight for every sample."""

    def __init__(self, spelled):
        super().__init__()
        self.spelled = spelled
        self.first, self.mix, self.last = nn.Linear(32, 32), nn.Linear(32, 32, bias=False), nn.Linear(32, 4)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last(self.spelled(self.mix, h).mean(1))


SPELLED = {
    "layer": lambda mix, h: mix(h.transpose(1, 2)).transpose(1, 2),
    "product": lambda mix, h: h.transpose(1, 2) @ mix.weight.T,
    "left": lambda mix, h: mix.weight @ h,
    "four axes": lambda mix, h: mix(h.unflatten(2, (4, 8)).permute(0, 2, 3, 1)).sum(1),
}


@pytest.mark.quick(2)
@pytest.mark.parametrize("spelled", SPELLED.values(), ids=SPELLED)
def test_a_layer_that_multiplies_across_tokens_is_the_same_in_prediction(spelled):
    torch.manual_seed(0)
    source = ModelSource(Shared(spelled), nn.functional.cross_entropy, (torch.randn(4, 32, 32), torch.arange(4)))
    lowered = lower_model(source, CompileOptions(recipe="none", include=("mix", "first")))
    assert binarized(lowered.train) == {"first": True, "mix": True, "last": False}
    assert binarized(lowered.predict) == binarized(lowered.train)
    assert not lowered.predict.calls(torch.ops.fqt.batch_matmul.default)


@pytest.mark.quick
@pytest.mark.parametrize("transposed", [False, True])
def test_a_layer_that_is_multiplied_otherwise_in_evaluation_is_refused(transposed):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.mix, self.last = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4)

        def forward(self, x):
            h = torch.relu(self.first(x))
            if self.training:
                return self.last(self.mix(h).mean(1))
            return self.last((h.transpose(1, 2) @ self.mix.weight if transposed else h @ self.mix.weight).mean(1))

    source = ModelSource(Two(), nn.functional.cross_entropy, (torch.randn(4, 32, 32), torch.arange(4)))
    with pytest.raises(FqtError, match=r"'mix\.weight' is multiplied in another way") as error:
        lower_model(source, CompileOptions(recipe="none", include=("mix", "first")))
    assert error.value.code == "FQT107"
    assert "test_annotate_layers.py" in error.value.render()
    lower_model(source, CompileOptions(recipe="none", include=("first",)))


def test_layers_whose_weight_forward_computes_are_named(graph_after):
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3),
        norm(nn.Conv2d(8, 8, 3)),
        nn.Flatten(),
        norm(nn.Linear(128, 40)),
        nn.ReLU(),
        nn.Linear(40, 4),
    )
    graph = graph_after(model, "annotate-layers")
    assert binarized(graph) == {"0": False, "1": False, "3": False, "5": False}
    assert (
        graph.layers[1].reason == graph.layers[2].reason == "forward computes its weight, as weight normalization does"
    )
    assert "forward computes the weights of 2 layers" in graph.notes[-1]
    assert graph.notes[-1].endswith("so that they stay in fp32: 1, 3")
    plain = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(288, 40), nn.ReLU(), nn.Linear(40, 4))
    assert graph_after(plain, "annotate-layers").notes == ()
