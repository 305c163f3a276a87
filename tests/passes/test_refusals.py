"""Decisions and refusals of single passes, each with its code and the place in the model."""

import pytest
import torch
from torch import nn

from fqt_deploy.core.diagnostics import FqtError, InvariantError
from fqt_deploy.core.graph import Emitter
from fqt_deploy.core.optimizer import Adam, ParameterGroup
from fqt_deploy.passes import invariants
from fqt_deploy.passes.append_optimizer import AppendOptimizer

aten = torch.ops.aten


def decisions(graph):
    return {record.path: (record.binarized, record.reason) for record in graph.layers}


def refused(graph_after, code, model, name, **options):
    with pytest.raises(FqtError) as caught:
        graph_after(model, name, **options)
    assert caught.value.code == code
    return caught.value.message


# annotate-layers


def test_the_ends_of_the_model_stay_in_fp32(graph_after):
    found = decisions(graph_after("convolutional", "annotate-layers"))
    assert {path: binarized for path, (binarized, _) in found.items()} == {"0": False, "3": True, "6": False}
    assert found["0"][1] == "the first convolution stays in fp32"
    assert found["6"][1] == "the last linear layer stays in fp32"


def test_include_and_exclude_choose_layers(graph_after):
    assert decisions(graph_after("dense", "annotate-layers", exclude=("3",)))["3"] == (False, "excluded by '3'")
    found = decisions(graph_after("dense", "annotate-layers", include=("[15]",)))
    assert [path for path, (binarized, _) in found.items() if binarized] == ["1", "5"]
    assert found["3"] == (False, "not included")
    message = refused(graph_after, "FQT204", "dense", "annotate-layers", include=("head.*",))
    assert "'head.*'" in message


def test_every_direction_of_a_layer_is_marked(graph_after):
    graph = graph_after("convolutional", "annotate-layers")
    marked = {(n.meta["layer"], n.meta["direction"]) for n in graph.graph.nodes if "direction" in n.meta}
    both = {(path, direction) for path in ("3", "6") for direction in ("forward", "input_grad", "weight_grad")}
    assert marked == both | {("0", "forward"), ("0", "weight_grad")}


# append-optimizer


def test_a_parameter_group_of_nothing_is_refused(graph_after):
    groups = (ParameterGroup("*.bias", 0.1), ParameterGroup("head.*", 0.1))
    graph = graph_after("dense", "check-operators")
    with pytest.raises(FqtError, match=r"FQT204: parameter group 'head.\*' matches no parameter"):
        AppendOptimizer(Adam(groups=groups)).run(graph)


def test_the_step_holds_the_optimizer_state(graph_after):
    graph = graph_after("dense", "append-optimizer")
    assert graph.inputs[:4] == ["x", "y", "seed", "lr"]
    assert not [name for name in graph.outputs if name.startswith("grad/")]
    assert {name.partition("/")[0] for name in graph.state} == {"param", "adam_m", "adam_v", "step"}
    assert set(graph.outputs[2:]) == graph.state.keys()


# normalize-products, normalize-layers, check-operators


class IndexedPooling(nn.Module):
    """Pooling whose positions are part of the result."""

    def forward(self, x):
        y, positions = nn.functional.max_pool2d(x, 2, return_indices=True)
        return y + positions.float()


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([nn.Conv2d(4, 8, 3), IndexedPooling()], "pooling whose indices are used"),
    ],
)
def test_layers_without_a_lowering_are_refused(graph_after, layers, said):
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(4))
    model(torch.zeros(8, 4, 8, 8))
    assert said in refused(graph_after, "FQT203", model, "check-operators")


class Many(nn.Module):
    """What is unsupported feeds what is supported."""

    def __init__(self):
        super().__init__()
        self.grouped, self.pool = nn.Conv2d(4, 8, 3, groups=2, padding=1), nn.MaxPool2d(3, ceil_mode=True)
        self.dilated, self.mean = nn.Conv2d(8, 8, 3, dilation=2, padding=2), nn.AvgPool2d(2, ceil_mode=True)
        self.head = nn.Linear(8 * 2 * 2, 4)

    def forward(self, x):
        x = self.pool(self.grouped(x))
        x = self.mean(torch.special.bessel_j0(x.detach()) + self.dilated(x))
        return self.head(torch.logcumsumexp(x.flatten(1), 1))


def test_all_that_is_refused_is_told_at_once(graph_after):
    model = Many()
    model(torch.zeros(8, 4, 8, 8))
    with pytest.raises(FqtError) as caught:
        graph_after(model, "check-operators")
    told = [(part.code, part.module, part.message) for part in caught.value.parts]
    assert told == [
        ("FQT201", "", "aten.special_bessel_j0.default (forward) cannot be lowered"),
        ("FQT201", "", "aten.logcumsumexp.default (forward) cannot be lowered"),
    ]
    assert all(part.location is not None and part.hint for part in caught.value.parts)
    assert caught.value.render().endswith("\n2 errors")


class Unusual(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(256, 40), nn.Linear(40, 4)

    def forward(self, x):
        x = torch.logcumsumexp(self.body(x.flatten(1)), 1)
        return self.head(torch.special.bessel_j0(x.detach()) + x)


def test_all_unsupported_operators_are_listed_at_once(graph_after):
    message = refused(graph_after, "FQT201", Unusual(), "check-operators")
    assert "aten.logcumsumexp.default (forward)" in message
    assert "bessel_j0" in message
    assert message.count("test_refusals.py") >= 2


class Counted(nn.Module):
    """Experts as transformers counts their tokens, and a Fourier transform."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(256, 40), nn.Linear(40, 4)

    def forward(self, x):
        x = self.body(x.flatten(1))
        counts = torch.histc(x.detach().argmax(1).float(), bins=40, min=0, max=39)
        return self.head(torch.fft.fft(x).real * counts)


def test_what_to_write_instead_of_an_operator_is_said(graph_after):
    with pytest.raises(FqtError) as caught:
        graph_after(Counted(), "check-operators")
    hints = {part.message.partition(" ")[0]: part.hint for part in caught.value.parts}
    assert "set_experts_implementation('batched_mm')" in hints["aten.histc.default"]
    assert "as products" in hints["aten._fft_c2c.default"] or "as products" in hints["aten._fft_r2c.default"]


class Narrow(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(256, 40), nn.Linear(40, 4)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = torch.relu(self.body(x.flatten(1)))
        return self.head(x.double().float())


def test_float32_is_what_kernels_compute_in(graph_after):
    message = refused(graph_after, "FQT201", Narrow(), "check-operators")
    assert "fqt.linear.default (forward, bfloat16)" in message
    assert "(forward, float64)" in message


# binarize-forward


def test_a_weight_may_have_any_name(graph_after):
    """Attention packs three layers into a parameter of its own."""
    model = nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(64, 4, 64, batch_first=True), nn.Flatten())
    graph = graph_after(nn.Sequential(*model, nn.Linear(256, 4)), "binarize-forward")
    assert decisions(graph)["1.self_attn.in_proj_weight"] == (True, "default")


# select-once


class Auxiliary(nn.Module):
    """Two heads: the gradient of one does not pass through the input of the other."""

    def __init__(self):
        super().__init__()
        self.body, self.early, self.middle = nn.Linear(256, 40), nn.Linear(40, 4), nn.Linear(40, 40)
        self.head = nn.Linear(40, 4)

    def forward(self, x):
        x = torch.relu(self.body(x.flatten(1)))
        return self.head(torch.relu(self.middle(x))) + self.early(x)


@pytest.mark.parametrize("agp", ["once", "nested"])
def test_a_gradient_that_bypasses_the_classifier_is_refused(graph_after, agp):
    assert "bypasses" in refused(graph_after, "FQT205", Auxiliary(), f"select-{agp}", agp=agp)


def test_by_default_such_a_model_is_sampled_layer_by_layer(graph_after):
    graph = graph_after(Auxiliary(), "insert-agp")
    assert graph.selection == "sampled"
    assert "bypasses" in graph.selection_note
    assert "test_refusals.py" in graph.selection_note
    graph = graph_after("dense", "insert-agp")
    assert (graph.selection, graph.selection_note) == ("nested", "")


@pytest.mark.parametrize(("bits", "kept"), [(2, 4), (4, 2), (8, 1)])
def test_backward_shrinks_to_the_kept_samples(graph_after, bits, kept):
    graph = graph_after("dense", "select-once", agp="once", grad_bits=bits)
    (product,) = [n for n in graph.calls(torch.ops.fqt.linear_weight_grad.default) if n.meta["layer"] == "3"]
    assert [int(operand.meta["val"].shape[0]) for operand in product.args] == [kept, kept]


# insert-agp


@pytest.mark.parametrize(("bits", "samples", "channels"), [(2, 4, 20), (4, 2, 10), (8, 1, 5)])
def test_agp_keeps_one_of_b_groups(graph_after, bits, samples, channels):
    graph = graph_after("dense", "insert-agp", grad_bits=bits, agp="sampled")
    found = {tuple(n.meta["val"].shape) for n in graph.calls(torch.ops.fqt.quantize_samples.default)}
    assert found == {(samples, 1, 40)}
    found = {tuple(n.meta["val"].shape) for n in graph.calls(torch.ops.fqt.quantize_channels.default)}
    assert found == {(8, 1, channels)}


# invariants


def spoil_outputs(graph):
    graph.outputs.pop()


def spoil_inputs(graph):
    graph.inputs.append("z")


def spoil_value(graph):
    del graph.output("loss").meta["val"]


def spoil_stage(graph):
    emit = Emitter(graph, graph.output_node())
    weight = graph.placeholder("param/3.weight")
    emit(aten.mm.default, weight, weight)


def spoil_state(graph):
    position = graph.outputs.index("step")
    values = list(graph.output_node().args[0])
    values[position] = graph.output("loss")
    graph.output_node().args = (tuple(values),)


def spoil_kernel(graph):
    emit = Emitter(graph, graph.output_node())
    emit(aten.logcumsumexp.default, graph.placeholder("param/3.weight"), 0)


@pytest.mark.parametrize(
    ("spoil", "invariant"),
    [
        (spoil_outputs, invariants.inputs_and_outputs_are_named),
        (spoil_inputs, invariants.inputs_and_outputs_are_named),
        (spoil_value, invariants.every_value_has_a_shape),
        (spoil_stage, invariants.ops_are_legal_in_stage),
        (spoil_state, invariants.updated_state_keeps_its_type),
        (spoil_kernel, invariants.every_op_has_a_kernel),
    ],
)
def test_a_broken_graph_is_named(graph_after, spoil, invariant):
    graph = graph_after("dense", "write-state")
    for holds in (*invariants.ALWAYS, invariants.every_op_has_a_kernel):
        holds(graph)
    spoil(graph)
    with pytest.raises(InvariantError):
        invariant(graph)
