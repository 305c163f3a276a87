// Times loading and steps in headless Chromium: `node browser.mjs CHROMIUM MODELS NAME BATCHES PROVIDER THREADS STEPS`.
//
// MODELS holds NAME.step.onnx and the files beside it, BATCHES holds x.bin and y.bin, the numbers of two batches as they lie in
// memory. PROVIDER is ONNX Runtime's: wasm, webgpu or webnn. Prints as JSON the milliseconds from nothing to a trainer in a worker, those of each step, and all losses.
import { withPage } from "../test/browser.mjs";

const [chromium, models, name, batches, provider, threads, steps] = process.argv.slice(2);
const found = await withPage(
  chromium,
  { "/models/": models, "/batches/": batches },
  async (page) => {
    await page.goto(`${page.origin}/test/browser.html`);
    return page.evaluate(measured, name, provider, Number(threads), Number(steps));
  },
  { isolated: Number(threads) > 1, gpu: provider !== "wasm" },
);
console.log(JSON.stringify(found));

/** Runs in the page. */
async function measured(name, provider, numThreads, steps) {
  const started = performance.now();
  const { loadInWorker } = await import("/src/remote_trainer.js");
  const file = (end) => `/models/${name}.${end}`;
  const model = await loadInWorker(
    `/node_modules/onnxruntime-web/dist/ort.${provider === "wasm" ? "wasm" : "all"}.min.mjs`,
    { step: file("step.onnx"), predict: file("predict.onnx"), state: file("state.safetensors") },
    { executionProviders: [provider], logSeverityLevel: 3, numThreads },
  );
  const loaded = performance.now() - started;
  const arrays = { float32: Float32Array, int64: BigInt64Array };
  const given = model.manifest.inputs.map(async ({ name, dtype }) => {
    const content = await (await fetch(`/batches/${name}.bin`)).arrayBuffer();
    const both = new arrays[dtype](content);
    return [both.subarray(0, both.length / 2), both.subarray(both.length / 2)];
  });
  const inputs = await Promise.all(given);
  const [milliseconds, losses] = [[], []];
  for (let i = 0; i < steps; i++) {
    const begin = performance.now();
    losses.push(await model.step(...inputs.map((halves) => halves[i % 2])));
    milliseconds.push(performance.now() - begin);
  }
  model.release();
  return { loaded, milliseconds, losses };
}
