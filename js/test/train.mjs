// Trains what the Python tests exported, and prints what came out as JSON: `node train.mjs PACKAGE FOLDER`.
//
// FOLDER holds digits.step.onnx and the files beside it, x.bin (float32) and y.bin (int64) with all batches in a row, and
// python.safetensors, a checkpoint that Python saved. Writes javascript.safetensors there.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { load } from "../src/index.js";

const [name, folder] = process.argv.slice(2);
const ort = await import(name);
if (name === "onnxruntime-web") ort.env.wasm.numThreads = 1;
const options = { executionProviders: [name === "onnxruntime-web" ? "wasm" : "cpu"], logSeverityLevel: 3 };
const [step, predict, state] = ["step.onnx", "predict.onnx", "state.safetensors"].map((end) => join(folder, `digits.${end}`));
const bytes = async (file) => (await readFile(join(folder, file))).buffer.slice(0);
const array = async (kind, file) => new kind(new Uint8Array(await readFile(join(folder, file))).buffer);

const started = performance.now();
const model = await load(ort, { step, predict, state }, options);
const loaded = performance.now() - started;
const [x, y] = [await array(Float32Array, "x.bin"), await array(BigInt64Array, "y.bin")];
const size = x.length / y.length;
const batch = (i) => [
  x.subarray(i * model.batch * size, (i + 1) * model.batch * size),
  y.subarray(i * model.batch, (i + 1) * model.batch),
];
const [losses, milliseconds] = [[], []];
const steps = y.length / model.batch;
for (let i = 0; i < steps; i++) {
  const begin = performance.now();
  losses.push(await model.step(...batch(i)));
  milliseconds.push(performance.now() - begin);
}
const logits = await model.predict(x.subarray(0, (model.batch + 3) * size));
model.lr = 5e-4;
model.seed = 11n;
await writeFile(join(folder, "javascript.safetensors"), await model.saveCheckpoint({ epoch: "1" }));
const stepCount = model.stepCount;

const metadata = await model.loadCheckpoint(new Uint8Array(await bytes("python.safetensors")));
const resumed = { metadata, step: model.stepCount, lr: model.lr, seed: String(model.seed), loss: await model.step(...batch(0)) };
await model.release();
milliseconds.sort((a, b) => a - b);
console.log(
  JSON.stringify({ losses, logits: [...logits], stepCount, resumed, loaded, median: milliseconds[steps >> 1] }),
);
process.exit(0); // worker threads of onnxruntime-web keep Node alive
