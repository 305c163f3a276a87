"""Grids of activations: their kind is told by the graph, their spacing by the example batch."""

import math

import pytest
import torch
from torch import nn

from fqt_deploy.capture.capture_model import capture_model
from fqt_deploy.capture.load_model import ModelSource, model_source
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.core.graph import grids_of
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.passes.choose_bits import SPACINGS, spacing_of
from fqt_deploy.passes.example_values import visit_values
from fqt_deploy.passes.pipelines import training_passes
from tests.passes.training_graphs import graph_of


def grids(module, x, **options):
    """The grids of the layers of a classifier."""
    graph = graph_of(module, (x, torch.zeros(len(x), dtype=torch.long)), before="binarize-forward", **options)
    return {record.path: record.grid for record in graph.layers}


def test_the_prediction_has_the_grids_of_the_step():
    source = ModelSource(between(nn.ReLU()), nn.functional.cross_entropy, (torch.randn(8, 40), torch.arange(8) % 4))
    lowered = lower_model(source, CompileOptions(activation_bits=3))
    train, predict = ({r.path: r.grid for r in graph.layers} for graph in (lowered.train, lowered.predict))
    assert train == predict
    assert train["2"].bits == 3


def between(*activations):
    return nn.Sequential(nn.Linear(40, 64), *activations, nn.Linear(64, 64), nn.Linear(64, 4))


@pytest.mark.quick(3, per="signed")
@pytest.mark.parametrize(
    ("activations", "signed"),
    [
        ([nn.ReLU()], False), ([nn.Sigmoid()], False), ([nn.Hardtanh(0.0, 1.0)], False),
        ([nn.ReLU(), nn.Dropout(0.2)], False), ([nn.Softmax(1)], False),
        ([nn.ReLU(), nn.Unflatten(1, (8, 8)), nn.Flatten()], False),
        ([nn.Tanh()], True), ([nn.GELU()], True), ([nn.Softplus()], True), ([nn.PReLU()], True),
        ([nn.Hardtanh()], True), ([], True),
        ([nn.ReLU(), nn.LayerNorm(64)], True),
    ],
)  # fmt: skip
def test_what_cannot_be_negative_gets_a_grid_without_signs(activations, signed):
    found = grids(between(*activations), torch.randn(8, 40), activation_bits=3)
    middle = str(len(activations) + 1)
    assert found[middle].signed == signed
    assert found[str(len(activations) + 2)] is None, "the last layer is not binarized"


def test_the_spacing_fits_the_example_batch():
    """Ten times the values, ten times the spacing, to the eighth of a power of two that it is rounded to."""
    x = torch.randn(64, 40)
    one, ten = (grids(between(nn.ReLU()), size * x, activation_bits=4)["0"] for size in (1, 10))
    assert one.spacing == pytest.approx(SPACINGS[True][4], rel=2 ** (1 / 16) - 1 + 0.05)
    assert ten.spacing / one.spacing == pytest.approx(10, rel=2 ** (1 / 8) - 1)
    assert (math.log2(ten.spacing) * 8) % 1 == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("size", [0.0, math.inf, math.nan])
def test_values_without_a_size_get_the_grid_of_normalized_ones(size):
    assert spacing_of(size, 2, True) == spacing_of(1.0, 2, True)


def deep():
    """Without normalization every layer on signs of weights makes values smaller, and the next reads those."""
    layers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(4)]
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), *layers, nn.Linear(64, 4))


@pytest.mark.parametrize("bits", [1, 4])
def test_the_spacing_fits_what_layers_read_in_the_quantized_step(make_source, bits):
    graph, _ = capture_model(make_source(deep()))
    for each in training_passes(CompileOptions(activation_bits=bits)):
        each.run(graph)
        if each.name == "binarize-forward":
            break
    read = {node.args[0]: node.args[1:] for node in graph.calls(torch.ops.fqt.activation_levels.default)}
    assert len(read) >= 4
    sizes = {}
    visit_values(graph, read, lambda node, value: sizes.update({node: value.square().mean().sqrt().item()}))
    spacings = [spacing for spacing, *_ in read.values()]
    assert spacings == [spacing_of(sizes[x], bits, signed) for x, (_, _, signed) in read.items()]
    assert spacings[-1] < spacings[-3]


def prelu(slope):
    return nn.PReLU(init=slope)


@pytest.mark.quick(2, per="signed")
@pytest.mark.parametrize(
    ("activation", "signed"),
    [
        (nn.GELU(), False), (nn.SiLU(), False), (nn.Hardswish(), False), (nn.LeakyReLU(), False), (prelu(-0.1), False),
        (prelu(0.9), True), (nn.Tanh(), True), (nn.Softsign(), True), (nn.Identity(), True), (nn.LayerNorm(64), True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("bits", [1, 2])
def test_few_bits_are_not_spent_on_negative_values_that_hardly_occur(activation, signed, bits):
    x = torch.randn(64, 40, generator=torch.Generator().manual_seed(0))
    layers = between(nn.BatchNorm1d(64), activation)
    found = grids(layers, x, activation_bits=bits, activation_grid="fitted")["3"]
    assert (found is None or found.signed) == signed
    assert found is None or found.bits == bits


@pytest.mark.parametrize(("activation", "fitted"), [(nn.ReLU(), True), (nn.Sigmoid(), True), (nn.Tanh(), False)])
def test_one_bit_of_what_cannot_be_negative_gets_a_grid_where_it_is_asked_for(activation, fitted):
    layers, x = between(activation), torch.randn(64, 40, generator=torch.Generator().manual_seed(0))
    assert grids(layers, x, activation_bits=1, activation_grid="sign") == dict.fromkeys(("0", "2", "3"))
    found = grids(layers, x, activation_bits=1, activation_grid="fitted")
    assert found["0"] is None, "what has both signs keeps them"
    assert (found["2"] is not None) == fitted
    if fitted:
        with torch.no_grad():
            size = activation(layers[0](x)).square().mean().sqrt().item()
        # the layer's own weights and inputs are binarized where this is measured: equal up to a factor near 1
        assert (found["2"].bits, found["2"].signed) == (1, False)
        assert found["2"].spacing == pytest.approx(SPACINGS[False][1] * size, rel=0.5)


def test_layers_have_bits_of_their_own():
    found = grids(between(nn.ReLU()), torch.randn(8, 40), activation_bits=2, bits={"2": (1, 8), "0": (1, 1)})
    assert found["0"] is None
    assert found["2"].bits == 8
    found = grids(
        between(nn.ReLU()), torch.randn(8, 40), activation_grid="fitted", activation_bits=2, bits={"2": (1, 1)}
    )
    assert (found["0"].bits, found["2"].bits) == (2, 1)


@pytest.mark.parametrize(
    ("bits", "signed"), [(1, False), *((bits, signed) for bits in (2, 3, 4) for signed in (True, False))]
)
def test_the_spacing_has_the_least_error_for_normal_values(bits, signed):
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    x = x if signed else x.clamp(min=0)
    size = x.square().mean().sqrt().item()

    def error(spacing):
        levels = torch.ops.fqt.activation_levels(x, spacing, bits, signed)
        return (levels * (spacing / 2 if signed else spacing) - x).square().mean().item()

    best = SPACINGS[signed][bits] * size
    assert error(best) < min(error(best * 1.1), error(best * 0.9))


def test_another_shape_of_batches_has_the_same_grids():
    """Though its example batch would ask for others."""
    model = between(nn.ReLU())
    batches = [(size * torch.randn(n, 40), torch.zeros(n, dtype=torch.long)) for n, size in ((8, 1), (5, 30))]
    source = model_source(model, nn.functional.cross_entropy, batches)
    first, other = lower_model(source, CompileOptions(activation_bits=4)).graphs()
    chosen = grids_of(first[0].layers)
    assert len(chosen) == 2
    for graph in (*first, *other):
        assert grids_of(graph.layers) == chosen
