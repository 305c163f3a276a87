#!/usr/bin/env bash
# onnxruntime-node 1.30.0: an input that has an initializer of its name is fed without an error, and ignored.
# ONNX (IR version 4 and later) has such an initializer be the default of an input, which a caller may replace; Python, C and
# C++ do so. In JavaScript session.inputNames lacks the input, run() takes a tensor for it all the same, and computes with
# the default: a training loop that feeds its state back trains nothing. onnxruntime-web refuses the tensor.
# What to do: export state without initializers, as required inputs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.30.0
venv/bin/python - <<'PY'
import numpy as np
import onnx
import onnxruntime

model = onnx.parser.parse_model(
    '<ir_version: 10, opset_import: ["" : 21]> g (float x, float state = {1.0}) => (float y) { y = Add(x, state) }'
)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, "model.onnx")
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
y = session.run(None, {"x": np.array(10, "f4"), "state": np.array(5, "f4")})[0]
print("Python:", y)
assert y == 15, "the model is not what it should be"
PY
npm install --silent --no-audit --no-fund --ignore-scripts onnxruntime-node@1.30.0
cat > feed.mjs <<'JS'
import ort from "onnxruntime-node";
const session = await ort.InferenceSession.create("model.onnx", { logSeverityLevel: 3 });
const scalar = (value) => new ort.Tensor("float32", [value], []);
const { y } = await session.run({ x: scalar(10), state: scalar(5) });
console.log("inputs in Node:", session.inputNames.join(", "));
console.log("Node:", y.data[0]);
if (y.data[0] !== 11) throw new Error("the behaviour changed");
JS
node feed.mjs
