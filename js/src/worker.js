// The other end of remote_trainer.js: a trainer in a Web Worker.
import { FqtError, load } from "./index.js";

let trainer;
const stops = new Map(); // AbortControllers by the number of the call

const METHODS = {
  load: async (id, url, numThreads, files, options) => {
    let ort;
    try {
      ort = await import(url);
    } catch (error) {
      throw new FqtError(`cannot import ONNX Runtime from ${url}: ${error.message}`, "FQT509", "give its URL");
    }
    if (numThreads !== undefined) ort.env.wasm.numThreads = numThreads;
    trainer = await load(ort, files, options);
    return trainer.manifest;
  },
  fit: async (id, data, options) => {
    const stop = new AbortController();
    const tell = ({ detail }) => postMessage({ id, progress: detail });
    stops.set(id, stop);
    trainer.addEventListener("progress", tell);
    try {
      return await trainer.fit(data, { ...options, signal: stop.signal });
    } finally {
      trainer.removeEventListener("progress", tell);
      stops.delete(id);
    }
  },
  step: (id, ...batch) => trainer.step(...batch),
  predict: (id, ...inputs) => trainer.predict(...inputs),
  saveCheckpoint: (id, metadata) => trainer.saveCheckpoint(metadata),
  loadCheckpoint: (id, content) => trainer.loadCheckpoint(content),
  configure: (id, { lr, seed }) => {
    const before = trainer.lr;
    if (lr !== undefined) trainer.lr = lr;
    try {
      if (seed !== undefined) trainer.seed = seed;
    } catch (error) {
      trainer.lr = before;
      throw error;
    }
  },
};

/** What the page may read of the trainer without asking. */
const shown = () =>
  trainer && { stepCount: trainer.stepCount, lr: trainer.lr, seed: trainer.seed, lastLogits: trainer.lastLogits };

addEventListener("message", async ({ data: { id, method, args, cancel } }) => {
  if (cancel !== undefined) {
    stops.get(cancel)?.abort();
    return;
  }
  try {
    const result = await METHODS[method](id, ...args);
    postMessage({ id, result, shown: shown() });
  } catch (error) {
    postMessage({ id, error: { message: error.message ?? String(error), code: error.code, hint: error.hint } });
  }
});
