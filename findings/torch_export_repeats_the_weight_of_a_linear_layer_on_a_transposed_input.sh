#!/usr/bin/env bash
# torch 2.13.0 (CPU): the same nn.Linear has other matrix products in an exported program than in a training graph.
# Where its input has three axes and is not contiguous, as behind a transpose, torch.export and its decompositions repeat the
# weight for each sample (expand) and call bmm; a graph that is traced with gradients, as AOTAutograd's joint graph is, copies
# the input and calls mm with the weight itself. A contiguous input gives addmm in both. Who looks for a layer's weight at mm
# and addmm, say to quantize it, finds it in training and not in the exported program, whose numbers are then another model's.
# What to do: look through expand and view before bmm as well, and compare both programs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
venv/bin/python -W ignore - <<'PY'
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx


class Tokens(nn.Module):
    def __init__(self, across):
        super().__init__()
        self.layer, self.across = nn.Linear(8, 3), across

    def forward(self, x):
        return self.layer(x.transpose(1, 2) if self.across else x)


def calls(graph):
    found = (str(node.target) for node in graph.nodes if node.op == "call_function")
    return [name for name in found if name.split(".")[1] in ("mm", "addmm", "bmm", "expand")]


def exported(across):
    x = torch.ones(2, 8, 4) if across else torch.ones(2, 4, 8)
    return calls(torch.export.export(Tokens(across), (x,)).run_decompositions().graph)


def traced(across):
    x = torch.ones(2, 8, 4, requires_grad=True) if across else torch.ones(2, 4, 8, requires_grad=True)
    return calls(make_fx(Tokens(across))(x).graph)


for across in (False, True):
    print("across" if across else "along", "exported:", exported(across), "traced with gradients:", traced(across))
assert exported(False) == ["aten.addmm.default"] == traced(False)
assert exported(True) == ["aten.expand.default", "aten.expand.default", "aten.bmm.default"], "the behaviour changed"
assert traced(True) == ["aten.mm.default"], "the behaviour changed"
PY
