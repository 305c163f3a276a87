"""Graphs as text: every kind of line, types without a short name among them."""

import torch
from torch import fx

from fqt_deploy.core.dump import graph_text
from fqt_deploy.core.graph import Emitter, Stage, TrainingGraph

aten = torch.ops.aten

EXPECTED = """\
stage lowered, batch 2
input  %x: f32[2, 3] = x
input  %w: float16[3] = param/w
%var_mean_correction: (f32[3], f32[3]) = aten.var_mean.correction(%x, [0], correction=1)  # forward body.0
%getitem: f32[3] = %var_mean_correction[1]  # forward body.0
%_to_copy_default: float16[3] = aten._to_copy(%getitem, dtype=float16)  # backward
%full_default: f64[] = aten.full([], 1.5, dtype=f64)
%cat_default: f32[6] = aten.cat([%getitem, %getitem])
%unknown: ? = aten.neg(%cat_default)
output loss = %full_default
output param/w = %w
output nothing = None
"""


def test_every_kind_of_line():
    body = fx.Graph()
    x, w = body.placeholder("x"), body.placeholder("w")
    x.meta["val"], w.meta["val"] = torch.empty(2, 3), torch.empty(3, dtype=torch.float16)
    output = body.output(())
    graph = TrainingGraph(
        fx.GraphModule(torch.nn.Module(), body), ["x", "param/w"], ["loss", "param/w", "nothing"], {}, 2, Stage.LOWERED
    )
    emit = Emitter(graph, output, phase="forward", layer="body.0")
    mean = emit.item(emit(aten.var_mean.correction, x, [0], correction=1), 1)
    emit.meta = {"phase": "backward", "layer": ""}
    emit(aten._to_copy.default, mean, dtype=torch.float16)
    emit.meta = {}
    loss = emit(aten.full.default, [], 1.5, dtype=torch.float64)
    node = emit(aten.neg.default, emit(aten.cat.default, [mean, mean]))
    node.name = "unknown"
    del node.meta["val"]
    output.args = ((loss, w, None),)
    assert graph_text(graph) == EXPECTED
