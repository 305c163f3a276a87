import { FqtError } from "./error.js";

export { FqtError };

/**
 * Load what `fqt-compile --emit onnx-step` wrote into a Web Worker, so that a page stays responsive while it trains.
 *
 * @param {string | URL} ort where the module of ONNX Runtime is, such as `.../onnxruntime-web/dist/ort.wasm.min.mjs`
 * @param {object} files as for `load`; URLs may be relative to the page
 * @param {object} [options] of ONNX Runtime's sessions; also `numThreads`, of its WebAssembly
 * @returns {Promise<RemoteTrainer>}
 */
export async function loadInWorker(ort, files, { numThreads, ...options } = {}) {
  const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module", name: "fqt-train" });
  const trainer = new RemoteTrainer(worker);
  const here = Object.entries(files).map(([kind, file]) => [kind, typeof file === "string" ? absolute(file) : asSent(file)]);
  try {
    await trainer.open(absolute(ort), numThreads, Object.fromEntries(here), options);
  } catch (error) {
    worker.terminate();
    throw error;
  }
  return trainer;
}

const absolute = (url) => new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href).href;
const asSent = (file) => (file instanceof URL ? file.href : file); // a message cannot hold a URL

/** A trainer in a Web Worker: the methods and events of `Trainer`; `configure` sets learning rate and seed. */
export class RemoteTrainer extends EventTarget {
  #worker;
  #calls = new Map();
  #last = 0;
  #ended = null;
  #shown = { stepCount: 0, lr: NaN, seed: 0n, lastLogits: null };

  /** Not for callers: `loadInWorker` makes trainers. */
  constructor(worker) {
    super();
    this.#worker = worker;
    worker.addEventListener("message", ({ data }) => this.#told(data));
    worker.addEventListener("error", (event) => {
      this.#end(new FqtError(`the worker failed: ${event.message ?? "its module cannot be loaded"}`, "FQT509"));
    });
  }

  /** Not for callers. */
  async open(...args) {
    this.manifest = await this.#call("load", args);
  }

  get batch() {
    return this.manifest.inputs[0].shape[0];
  }

  get stepCount() {
    return this.#shown.stepCount;
  }

  get lastLogits() {
    return this.#shown.lastLogits;
  }

  get lr() {
    return this.#shown.lr;
  }

  get seed() {
    return this.#shown.seed;
  }

  /** Set the learning rate, the seed, or both; if one is refused, neither has changed. */
  configure(settings) {
    return this.#call("configure", [settings]);
  }

  step(...batch) {
    return this.#call("step", batch);
  }

  predict(...inputs) {
    return this.#call("predict", inputs);
  }

  async fit(data, { signal, ...options } = {}) {
    return this.#call("fit", [data, options], signal);
  }

  saveCheckpoint(metadata) {
    return this.#call("saveCheckpoint", [metadata]);
  }

  loadCheckpoint(content) {
    return this.#call("loadCheckpoint", [content]);
  }

  /** End the worker, at once: what runs in it is given up with FQT512. */
  async release() {
    this.#worker.terminate();
    this.#end(new FqtError("the model was released", "FQT512"));
  }

  async #call(method, args, signal) {
    if (this.#ended !== null) throw this.#ended;
    const id = ++this.#last;
    const cancel = () => this.#worker.postMessage({ cancel: id });
    const done = new Promise((resolve, reject) => this.#calls.set(id, { resolve, reject }));
    try {
      this.#worker.postMessage({ id, method, args });
      if (signal?.aborted) cancel();
      signal?.addEventListener("abort", cancel);
      return await done;
    } finally {
      signal?.removeEventListener("abort", cancel);
      this.#calls.delete(id);
    }
  }

  #told({ id, result, error, progress, shown }) {
    if (progress !== undefined) {
      this.#shown.stepCount += 1;
      this.dispatchEvent(new CustomEvent("progress", { detail: progress }));
      return;
    }
    this.#shown = shown ?? this.#shown;
    const call = this.#calls.get(id);
    if (error === undefined) call.resolve(result);
    else call.reject(Object.assign(new FqtError(error.message, error.code), { hint: error.hint }));
  }

  #end(error) {
    this.#ended = error;
    for (const { reject } of this.#calls.values()) reject(error);
  }
}
