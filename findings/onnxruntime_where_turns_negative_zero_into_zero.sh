#!/usr/bin/env bash
# onnxruntime 1.32.0 (CPU): Where does not copy what it chooses: a -0 that is chosen from X comes out as 0, one from Y as -0.
# ONNX says of Where that it returns elements of X or Y, and onnx's own reference returns -0. ONNX Runtime selects from X and from
# Y by themselves, zeros elsewhere, and merges the two by "what is not 0 in the first, else the second": a zero of X becomes
# the 0 that stands for "not chosen" in the other. Dividing by it, or reading its sign bit, gives another number then.
# What to do: compare values, not bits, where a Where has been. Where(true, x, y) that is replaced by x has other bits.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0
venv/bin/python - <<'PY'
import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

model = onnx.parser.parse_model(
    '<ir_version: 10, opset_import: ["" : 21]> g (bool[2] c, float[2] x, float[2] y) => (float[2] z) { z = Where(c, x, y) }'
)
onnx.checker.check_model(model, full_check=True)
feeds = {"c": np.array([True, False]), "x": np.array([-0.0, 5], "f4"), "y": np.array([5, -0.0], "f4")}
found = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
expected = ReferenceEvaluator(model).run(None, feeds)[0]
print("reference:", expected, "ONNX Runtime:", found)
assert np.signbit(expected).tolist() == [True, True]
assert np.signbit(found).tolist() == [False, True], "the behaviour changed"
PY
