import { loadInWorker } from "./fqt-train/remote_trainer.js";

import { Chart } from "./chart.js";
import { loadDigits, withDrawings } from "./data.js";
import { Drawing } from "./drawing.js";

const at = (id) => document.getElementById(id);
const chart = new Chart(at("chart"), at("chart-text"));
const drawings = [];
let model, digits, drawing;
let stop = null; // the AbortController of training in progress
let isPredicting = false;

/** Says what went wrong where people look, and goes on. */
const guarded = (action) => async (event) => {
  event?.preventDefault?.();
  try {
    await action(event);
  } catch (error) {
    at("status").textContent = `That did not work: ${error.message}`;
  }
};

const start = guarded(async () => {
  if ("serviceWorker" in navigator) await navigator.serviceWorker.register("service_worker.js");
  const began = performance.now();
  const file = (end) => `model/digits.${end}`;
  [digits, model] = await Promise.all([
    loadDigits(),
    loadInWorker(
      "onnxruntime-web/ort.wasm.min.mjs",
      { step: file("step.onnx"), predict: file("predict.onnx"), state: file("state.safetensors") },
      { executionProviders: ["wasm"], logSeverityLevel: 3, numThreads: 1 },
    ),
  ]);
  const [, , rows, columns] = model.manifest.inputs[0].shape;
  drawing = new Drawing(at("drawing"), at("drawing-place"), { rows, columns });
  drawing.addEventListener("drawn", guarded(guess));
  for (let label = 0; label < model.manifest.classes; label++) {
    at("class").append(new Option(String(label)));
    const row = document.createElement("li");
    row.innerHTML = `<meter min="0" max="1" value="0" aria-label="Class ${label}"></meter>`;
    at("scores").append(row);
  }
  model.addEventListener("progress", ({ detail }) => progressed(detail));
  at("status").textContent = `Loaded in ${((performance.now() - began) / 1000).toFixed(1)} s. Ready to train.`;
  ready(true);
});

function ready(isReady) {
  for (const id of ["start", "save", "load"]) at(id).disabled = !isReady;
  at("cancel").disabled = isReady;
}

/** Show the probabilities of the classes; while another call runs, the latest drawing waits for it. */
async function guess() {
  if (drawing.isEmpty) {
    at("guess").textContent = "Nothing is drawn.";
    for (const meter of at("scores").querySelectorAll("meter")) meter.value = 0;
    return;
  }
  if (isPredicting || stop !== null) return;
  isPredicting = true;
  let cells;
  try {
    do {
      cells = drawing.cells;
      const logits = await model.predict(digits.normalized(cells));
      const highest = Math.max(...logits);
      const weights = Array.from(logits, (logit) => Math.exp(logit - highest));
      const sum = weights.reduce((a, b) => a + b);
      at("scores").querySelectorAll("meter").forEach((meter, label) => (meter.value = weights[label] / sum));
      const best = logits.indexOf(highest);
      at("guess").textContent = `Class ${best}, with ${((100 * weights[best]) / sum).toFixed(0)} %.`;
    } while (drawing.cells.some((value, i) => value !== cells[i]));
  } finally {
    isPredicting = false;
  }
}

function progressed({ epoch, step, steps, loss, accuracy }) {
  chart.add(loss, accuracy);
  if (step % 10 !== 0 && step !== steps) return;
  chart.show();
  at("progress").max = steps;
  at("progress").value = step;
  at("status").textContent = `Epoch ${epoch + 1}, step ${step} of ${steps}: loss ${loss.toFixed(3)}`;
}

at("train").addEventListener("submit", guarded(async () => {
  ready(false);
  stop = new AbortController();
  try {
    await model.configure({ lr: Number(at("rate").value) });
    const data = withDrawings(digits.train, drawings);
    const done = await model.fit(data, { epochs: Number(at("epochs").value), signal: stop.signal });
    chart.show();
    const logits = await model.predict(digits.heldOut.x);
    const classes = model.manifest.classes;
    const right = digits.heldOut.y.filter((label, i) => {
      const scores = logits.subarray(i * classes, (i + 1) * classes);
      return scores.indexOf(Math.max(...scores)) === Number(label);
    });
    const share = ((100 * right.length) / digits.heldOut.y.length).toFixed(1);
    at("status").textContent =
      `${done.cancelled ? "Cancelled" : "Done"} after ${done.steps} steps; ${share} % of the held-out digits are right.`;
  } finally {
    stop = null;
    ready(true);
  }
  await guess();
}));

at("cancel").addEventListener("click", () => stop?.abort());
at("clear").addEventListener("click", () => drawing?.clear());

at("teach").addEventListener("submit", guarded(() => {
  if (drawing === undefined || drawing.isEmpty) {
    at("examples").textContent = "Draw something first.";
    return;
  }
  drawings.push({ x: digits.normalized(drawing.cells), label: Number(at("class").value) });
  at("examples").textContent = `${drawings.length} of your drawings, the latest one of class ${at("class").value}.`;
  drawing.clear();
}));

at("save").addEventListener("click", guarded(async () => {
  const content = await model.saveCheckpoint();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "application/octet-stream" }));
  link.download = `digits-${model.stepCount}.safetensors`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  at("status").textContent = `Saved after ${model.stepCount} steps as ${link.download}.`;
}));

at("load").addEventListener("change", guarded(async () => {
  const [file] = at("load").files;
  if (file === undefined) return;
  await model.loadCheckpoint(new Uint8Array(await file.arrayBuffer()));
  at("rate").value = String(model.lr);
  at("status").textContent = `Goes on after ${model.stepCount} steps.`;
  await guess();
}));

await start();
