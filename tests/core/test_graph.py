"""The graph that passes rewrite: named inputs and outputs, and insertion with shapes and provenance."""

import operator

import pytest
import torch
from torch import fx

from fqt_deploy.core.graph import Emitter, LayerRecord, StateTensor, TrainingGraph, propagate, replace, shape, value

aten = torch.ops.aten


@pytest.fixture
def graph():
    """``loss = mean(x + w)``, with ``w`` as state that stays the same."""
    body = fx.Graph()
    x, w = body.placeholder("x"), body.placeholder("w")
    x.meta["val"], w.meta["val"] = torch.empty(2, 3), torch.empty(3)
    total = body.call_function(aten.add.Tensor, (x, w))
    total.meta |= {"layer": "body.0", "phase": "forward", "stack_trace": "somewhere", "seq_nr": 7, "record": "own"}
    propagate(total)
    loss = body.call_function(aten.mean.default, (total,))
    propagate(loss)
    body.output((loss, w))
    state = {"param/w": StateTensor("param/w", "param", torch.zeros(3))}
    module = fx.GraphModule(torch.nn.Module(), body)
    return TrainingGraph(module, ["x", "param/w"], ["loss", "param/w"], state, batch=2)


def test_inputs_and_outputs_are_found_by_name(graph):
    assert graph.placeholder("param/w").name == "w"
    assert graph.output("loss").target is aten.mean.default
    assert graph.output("param/w") is graph.placeholder("param/w")
    assert graph.output_node().op == "output"
    with pytest.raises(KeyError):
        graph.placeholder("w")


def test_calls_and_layers_are_found(graph):
    graph.layers.append(LayerRecord("body.0", "linear", 0))
    assert graph.layer("body.0") is graph.layers[0]
    assert graph.layer("body") is None
    assert [n.target for n in graph.calls(aten.mean.default, aten.add.Tensor)] == [
        aten.add.Tensor, aten.mean.default,
    ]  # fmt: skip
    assert graph.calls(aten.sub.Tensor) == []


def test_an_emitter_inserts_before_its_anchor_with_shape_and_provenance(graph):
    (anchor,) = graph.calls(aten.add.Tensor)
    emit = Emitter(graph, anchor, phase="backward", role="gather")
    node = emit(aten.sum.dim_IntList, graph.placeholder("x"), [1], keepdim=True)
    assert anchor.prev is node
    assert (shape(node), value(node).dtype) == ([2, 1], torch.float32)
    inherited = {"layer": "body.0", "stack_trace": "somewhere", "seq_nr": 7}
    assert {k: v for k, v in node.meta.items() if k != "val"} == inherited | {"phase": "backward", "role": "gather"}
    assert value(3) == 3


def test_an_emitter_reads_one_of_several_results(graph):
    emit = Emitter(graph, graph.output_node())
    both = emit(aten.var_mean.correction, graph.placeholder("x"), [0])
    item = emit.item(both, 1)
    assert (item.target, item.args) == (operator.getitem, (both, 1))
    assert shape(item) == [3]
    assert len(value(both)) == 2


def test_shapes_propagate_as_if_operands_were_contiguous(graph):
    """A view of a permutation is legal in our graphs, where kernels write contiguous results."""
    emit = Emitter(graph, graph.output_node())
    turned = emit(aten.permute.default, graph.placeholder("x"), [1, 0])
    assert shape(emit(aten.view.default, turned, [6])) == [6]


def test_replacing_a_node_moves_its_users_and_removes_it(graph):
    (old,) = graph.calls(aten.add.Tensor)
    replace(graph, old, Emitter(graph, old)(aten.mul.Tensor, *old.args))
    assert graph.calls(aten.add.Tensor) == []
    graph.graph.lint()
    graph.module.recompile()
    x, w = torch.arange(6.0).view(2, 3), torch.tensor([1.0, 2.0, 3.0])
    loss, same = graph.module(x, w)
    assert (loss, same.tolist()) == ((x * w).mean(), [1, 2, 3])


@pytest.mark.parametrize(
    ("target", "args"),
    [(aten.full.default, ([1 << 45], 1.0)), (aten.zeros.default, ([1 << 45],)), (aten.arange.default, (1 << 45,))],
    ids=str,
)
def test_a_shape_takes_no_memory(graph, target, args):
    """Of an op without operands, on whatever device, or none, its result is to be."""
    emit = Emitter(graph, graph.output_node())
    for device in ({}, {"device": None}, {"device": torch.device("cpu")}):
        node = emit(target, *args, **device)
        assert (shape(node), value(node).device.type) == ([1 << 45], "meta")


def test_a_shape_draws_no_numbers(graph):
    before = torch.get_rng_state()
    node = Emitter(graph, graph.output_node())(aten.rand.default, [2, 3])
    assert shape(node) == [2, 3]
    assert torch.equal(torch.get_rng_state(), before)
