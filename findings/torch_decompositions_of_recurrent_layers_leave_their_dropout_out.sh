#!/usr/bin/env bash
# torch 2.13.0 (CPU): nn.LSTM, nn.GRU and nn.RNN of several layers lose the dropout between their layers as soon as they are
# spelled in simpler ops, as by torch.export's run_decompositions(). Nothing says so: the program is in training mode, the op
# that is exported first (aten.lstm.input) still has its dropout, and what comes out of it does not, so that another model is
# trained. The rule asks whether there are fewer layers than the number of the layer it is at, which is never so.
# What to do: call the layers one by one, with torch.nn.functional.dropout between them.
# Seen: with a dropout of 1.0 the second layer reads zeros in eager mode and in the exported program, and not in the
# decomposed one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
venv/bin/python -W ignore - <<'PY'
import torch
from torch import nn

x = torch.randn(5, 2, 4)
for kind in (nn.LSTM, nn.GRU, nn.RNN):
    torch.manual_seed(0)
    layer = kind(4, 4, 2, dropout=1.0).train()
    program = torch.export.export(layer, (x,))
    eager, exported, decomposed = (
        run(x)[0] for run in (layer, program.module(), program.run_decompositions().module())
    )
    print(kind.__name__, "exported as eager:", torch.allclose(eager, exported), end="; ")
    print("decomposed as eager:", torch.allclose(eager, decomposed))
    assert torch.allclose(eager, exported) and not torch.allclose(eager, decomposed), "the behaviour changed"
PY
