"""Graphs as text: every kind of line, and what is left out of it."""

import torch
from torch import fx

import fqt_deploy.passes  # noqa: F401 - defines the ops
from fqt_deploy.core.graph import Emitter, LayerRecord, Stage, StateTensor, TrainingGraph, meta_tensor
from fqt_deploy.core.text import graph_text, parse_graph

aten = torch.ops.aten

EXPECTED = """\
graph stage=lowered batch=2 selection=once selection_note="one path only"
layer body.0 = linear index=0 binarized=True reason="it is \\"default\\"" weight=param/w
layer "a layer" = conv2d index=1
input %x = x : f32[2, 3]
param %w = param/w : f16[3]
%var_mean_correction = aten.var_mean.correction(%x, dim=[0], correction=1) : (f32[3], f32[3]) {layer=body.0}
%getitem = %var_mean_correction[1] : f32[3] {layer=body.0}
%_to_copy_default = aten._to_copy(%getitem, dtype=f16) : f16[3] {backward}
%full_default = aten.full([], fill_value=1.5, dtype=f64) : f64[]
%cat_default = aten.cat([%getitem, %getitem]) : f32[6]
%sum_dim_int_list = aten.sum.dim_IntList(%cat_default, dim=[0], keepdim=True) : f32[1] \
{optimizer layer="a layer" role=gather seq=7 samples=2 \
at=model.py:12}
%unknown = aten.neg(%cat_default) : ? {layer=elsewhere direction=forward record=body.0 at="a b.py:3"}
output loss = %full_default
output param/w = %w
output nothing = None
"""


def test_every_kind_of_line():
    body = fx.Graph()
    x, w = body.placeholder("x"), body.placeholder("w")
    x.meta["val"], w.meta["val"] = meta_tensor([2, 3], torch.float32), meta_tensor([3], torch.float16)
    output = body.output(())
    layers = [
        LayerRecord("body.0", "linear", 0, binarized=True, reason='it is "default"', weight="param/w"),
        LayerRecord("a layer", "conv2d", 1),
    ]
    graph = TrainingGraph(
        fx.GraphModule(torch.nn.Module(), body), ["x", "param/w"], ["loss", "param/w", "nothing"],
        {"param/w": StateTensor("param/w", "param", torch.zeros(3, dtype=torch.float16))}, 2, Stage.LOWERED, layers,
        "once", "one path only",
    )  # fmt: skip
    emit = Emitter(graph, output, phase="forward", layer="body.0")
    mean = emit.item(emit(aten.var_mean.correction, x, [0], correction=1), 1)
    emit.meta = {"phase": "backward", "layer": ""}
    emit(aten._to_copy.default, mean, dtype=torch.float16)
    emit.meta = {}
    loss = emit(aten.full.default, [], 1.5, dtype=torch.float64)
    joined = emit(aten.cat.default, [mean, mean], 0)
    trace = 'File "/usr/lib/python3/site-packages/a.py", line 1, in f\n  File "model.py", line 12, in forward'
    emit.meta = {"phase": "optimizer", "layer": "a layer", "role": "gather", "seq_nr": 7, "samples": 2}
    emit.meta["stack_trace"] = trace
    emit(aten.sum.dim_IntList, joined, [0], True)
    emit.meta = {"layer": "elsewhere", "record": layers[0], "direction": "forward"}
    emit.meta["stack_trace"] = 'File "a b.py", line 3'
    node = emit(aten.neg.default, joined)
    node.name = "unknown"
    del node.meta["val"]
    output.args = ((loss, w, None),)
    assert graph_text(graph) == EXPECTED
    assert graph_text(parse_graph(graph_text(graph))) == graph_text(graph).replace(": ?", ": f32[6]")


def test_operands_of_many_have_names():
    """Beyond three tensors a reader no longer knows them by their places; defaults are left out."""
    graph = parse_graph(
        """
        graph stage=quantized batch=2
        input %g = g : f32[2, 1, 4]
        input %zero = zero : f32[2]
        input %key = key : i32[2]
        %codes = fqt.quantize_samples(%g, None, None, %zero, %zero, %key, 3)
        %total = aten.add.Tensor(%zero, %zero, alpha=1)
        %view = aten.view(%total, [1, 2])
        output codes = %codes
        """
    )
    lines = graph_text(graph).splitlines()[4:7]
    assert lines == [
        "%codes = fqt.quantize_samples(%g, alpha=None, index=None, zero=%zero, reciprocal=%zero, key=%key, bits=3)"
        " : u8[2, 1, 4]",
        "%total = aten.add.Tensor(%zero, %zero) : f32[2]",
        "%view = aten.view(%total, size=[1, 2]) : f32[1, 2]",
    ]


def test_a_call_of_what_is_no_operator_is_shown_as_it_was_called():
    """Such a call is refused as FQT201; a dump of the graph must get as far as that."""
    body = fx.Graph()
    x = body.placeholder("x")
    x.meta["val"] = meta_tensor([2], torch.float32)
    body.output((body.call_function(torch.add, (x, 1), {"alpha": 2}),))
    graph = TrainingGraph(fx.GraphModule(torch.nn.Module(), body), ["x"], ["y"], {}, 2)
    assert "(%x, 1, alpha=2) : ?" in graph_text(graph)
