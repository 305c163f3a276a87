// Trains what the Python tests exported, and prints what came out as JSON: `node train.mjs RUNTIME FOLDER [SEEDS EPOCHS]`.
//
// RUNTIME is onnxruntime-node, onnxruntime-web, or the path of Chromium, which runs onnxruntime-web in a worker. FOLDER holds
// digits.step.onnx and the files beside it, x.bin (float32) and y.bin (int64) with all batches in a row, and
// python.safetensors, a checkpoint that Python saved; javascript.safetensors and, of the first step, javascript.first.safetensors are
// written there. With EPOCHS, it holds testX.bin
// and testY.bin, and for each seed the accuracy on them is printed.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { load } from "../src/index.js";
import { withPage } from "./browser.mjs";
import { accuraciesAfter, runSteps } from "./run_steps.mjs";

const [runtime, folder, seeds, epochs] = process.argv.slice(2);
const found = runtime.startsWith("onnxruntime-") ? await inNode() : await inChromium();
for (const [key, name] of [["checkpoint", "javascript.safetensors"], ["first", "javascript.first.safetensors"]]) {
  if (found[key] !== undefined) await writeFile(join(folder, name), Uint8Array.from(found[key]));
  delete found[key];
}
console.log(JSON.stringify(found));
process.exit(0); // worker threads of onnxruntime-web keep Node alive

async function inNode() {
  const ort = await import(runtime);
  if (runtime === "onnxruntime-web") ort.env.wasm.numThreads = 1;
  const options = { executionProviders: [runtime === "onnxruntime-web" ? "wasm" : "cpu"], logSeverityLevel: 3 };
  const file = (end) => join(folder, `digits.${end}`);
  const bytes = async (name) => new Uint8Array(await readFile(join(folder, name)));
  const array = async (kind, name) => new kind((await bytes(name)).slice().buffer);
  const started = performance.now();
  const model = await load(
    ort,
    { step: file("step.onnx"), predict: file("predict.onnx"), state: file("state.safetensors") },
    options,
  );
  const loaded = performance.now() - started;
  const [x, y] = [await array(Float32Array, "x.bin"), await array(BigInt64Array, "y.bin")];
  if (epochs !== undefined) {
    const [testX, testY] = [await array(Float32Array, "testX.bin"), await array(BigInt64Array, "testY.bin")];
    return { accuracies: await accuraciesAfter(model, seeds, epochs, { x, y, testX, testY }) };
  }
  const done = await runSteps(model, { x, y, python: await bytes("python.safetensors") });
  await model.release();
  return { ...done, loaded };
}

function inChromium() {
  return withPage(runtime, { "/data/": folder }, async (page) => {
    await page.goto(`${page.origin}/test/browser.html`);
    return page.evaluate(async (seeds, epochs) => {
      const { loadInWorker } = await import("/src/remote_trainer.js");
      const { accuraciesAfter, runSteps } = await import("/test/run_steps.mjs");
      const bytes = async (name) => new Uint8Array(await (await fetch(`/data/${name}`)).arrayBuffer());
      const array = async (kind, name) => new kind((await bytes(name)).buffer);
      const file = (end) => `/data/digits.${end}`;
      const started = performance.now();
      const model = await loadInWorker(
        "/node_modules/onnxruntime-web/dist/ort.wasm.min.mjs",
        { step: file("step.onnx"), predict: file("predict.onnx"), state: file("state.safetensors") },
        { executionProviders: ["wasm"], logSeverityLevel: 3, numThreads: 1 },
      );
      const loaded = performance.now() - started;
      const [x, y] = [await array(Float32Array, "x.bin"), await array(BigInt64Array, "y.bin")];
      if (epochs) {
        const [testX, testY] = [await array(Float32Array, "testX.bin"), await array(BigInt64Array, "testY.bin")];
        return { accuracies: await accuraciesAfter(model, seeds, epochs, { x, y, testX, testY }) };
      }
      const done = await runSteps(model, { x, y, python: await bytes("python.safetensors") });
      const stop = new AbortController();
      const told = [];
      model.addEventListener("progress", ({ detail }) => told.push(detail.step) === 2 && stop.abort());
      const fitted = await model.fit([x, y], { epochs: 1000, signal: stop.signal });
      const refused = await model.step(x, y).catch(({ name, code }) => `${name} ${code}`);
      await model.release();
      const released = await model.predict(x).catch(({ code }) => code);
      const worker = { told, cancelled: fitted.cancelled, steps: fitted.steps, refused, released };
      return { ...done, checkpoint: [...done.checkpoint], first: [...done.first], loaded, worker };
    }, seeds, epochs);
  });
}
