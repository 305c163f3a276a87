import { asInput, checkValues } from "./batch.js";
import { readCheckpoint, writeCheckpoint } from "./checkpoint.js";
import { BY_DTYPE, sizeOf } from "./element_types.js";
import { FqtError } from "./error.js";
import { readManifest } from "./model_manifest.js";

export { FqtError };

const NEXT = "::next";

/**
 * Load what `fqt-compile --emit onnx-step` wrote, ready to train.
 *
 * @param {object} ort the module onnxruntime-web or onnxruntime-node
 * @param {object} files `step`, `state`, and `predict` if `predict()` is wanted: contents, URLs, or paths in Node
 * @param {object} [options] of ONNX Runtime's sessions, such as `{ executionProviders: ["wasm"] }`
 * @returns {Promise<Trainer>}
 */
export async function load(ort, files, options = {}) {
  const [step, predict, state] = await Promise.all([files.step, files.predict, files.state].map(contentOf));
  if (step === undefined || state === undefined) throw new FqtError("step and state are needed", "FQT501");
  const manifest = readManifest(step, nameOf(files.step));
  if (predict !== undefined && readManifest(predict, nameOf(files.predict)).fingerprint !== manifest.fingerprint) {
    throw new FqtError(`${nameOf(files.predict)} belongs to another model`, "FQT504", "export both files at once");
  }
  const settings = { ...defaultsFor(ort, options), ...options };
  const train = await opened(ort, step, settings, nameOf(files.step));
  const prediction = predict && (await opened(ort, predict, settings, nameOf(files.predict)));
  const trainer = new Trainer(ort, manifest, train, prediction, adviceFor(settings));
  await trainer.loadCheckpoint(state);
  return trainer;
}

/**
 * A model that is trained step by step. One call at a time: another one meanwhile is refused with FQT512.
 *
 * `fit` tells its progress in events of type "progress", whose `detail` is `{ epoch, step, steps, loss, accuracy }`.
 */
export class Trainer extends EventTarget {
  #ort;
  #train;
  #prediction;
  #state = new Map();
  #seed = 0n;
  #lr = [];
  #logits = null;
  #busy = false;
  #advice;

  /** Not for callers: `load` makes trainers. */
  constructor(ort, manifest, train, prediction, advice) {
    super();
    this.#ort = ort;
    this.#train = train;
    this.#prediction = prediction;
    this.#advice = advice;
    /** What the compiler says about the model. */
    this.manifest = manifest;
  }

  /** The number of samples in a batch. */
  get batch() {
    return this.manifest.inputs[0].shape[0];
  }

  /** The number of steps so far. */
  get stepCount() {
    return Number(this.#state.get("step").data[0]);
  }

  /** The logits of the batch of the latest step, before its update; null before the first. */
  get lastLogits() {
    return this.#logits;
  }

  /** The seed of the random streams; with the step count it determines every random number. */
  get seed() {
    return this.#seed;
  }

  set seed(value) {
    let seed;
    try {
      seed = BigInt(value);
    } catch {
      throw new FqtError(`the seed ${value} is no integer`, "FQT202");
    }
    if (BigInt.asIntN(64, seed) !== seed) throw new FqtError(`the seed ${value} does not fit into 64 bits`, "FQT202");
    this.#seed = seed;
  }

  /** The learning rate; with several parameter groups one rate each. One number sets all groups. */
  get lr() {
    return this.#lr.length > 1 ? [...this.#lr] : this.#lr[0];
  }

  set lr(value) {
    const groups = this.manifest.optimizer.groups.length;
    const rates = Array.isArray(value) ? value.map(Number) : Array(groups).fill(Number(value));
    if (rates.length !== groups) throw new FqtError(`${rates.length} learning rates for ${groups} groups`, "FQT202");
    const bad = rates.find((rate) => !(rate >= 0 && Number.isFinite(Math.fround(rate))));
    if (bad !== undefined) {
      throw new FqtError(`the learning rate is ${bad}`, "FQT202", "it must be finite and not negative");
    }
    this.#lr = rates;
  }

  /**
   * Train on one batch; if an input is refused, nothing has changed.
   *
   * @param {...(ArrayLike<number> | ArrayLike<bigint>)} batch the arrays that `manifest.inputs` names, in its order: inputs
   *   of the model, then targets; each with all numbers of the batch, row by row
   * @returns {Promise<number>} the loss
   */
  async step(...batch) {
    return this.#alone(() => this.#step(batch));
  }

  /**
   * The logits of any number of samples, row by row.
   *
   * @param {...(ArrayLike<number> | ArrayLike<bigint>)} inputs the model's inputs, in the order of `manifest.inputs`
   * @returns {Promise<Float32Array>}
   */
  async predict(...inputs) {
    return this.#alone(() => this.#predict(inputs));
  }

  /**
   * Train on data in memory; the last samples of an epoch that fill no batch are left out, others in each epoch.
   *
   * @param {(ArrayLike<number> | ArrayLike<bigint>)[]} data as for `step`, but with all samples
   * @param {{ epochs?: number, signal?: AbortSignal }} [options] `signal` ends training after the step in progress
   * @returns {Promise<{ steps: number, loss: number, cancelled: boolean }>} the last step's loss
   */
  async fit(data, { epochs = 1, signal } = {}) {
    return this.#alone(() => this.#fit(data, epochs, signal));
  }

  /**
   * Everything a resumed run needs, as the content of a safetensors file: `fqt-train --resume` takes it, and C and Python.
   *
   * @param {Record<string, string>} [metadata] text to keep with it
   * @returns {Promise<Uint8Array>}
   */
  async saveCheckpoint(metadata = {}) {
    return this.#alone(() => {
      const arrays = new Map([...this.#state].map(([name, tensor]) => [name, tensor.data]));
      const own = { seed: String(this.#seed), lr: JSON.stringify(this.#lr) };
      return writeCheckpoint(this.manifest, arrays, { ...metadata, ...own });
    });
  }

  /**
   * Go on where a checkpoint was saved, here or elsewhere; if it is refused, nothing has changed.
   *
   * @param {Uint8Array} content
   * @returns {Promise<Record<string, string>>} its metadata
   */
  async loadCheckpoint(content) {
    return this.#alone(async () => {
      const { state, metadata } = await readCheckpoint(content, this.manifest);
      const { seed, lr, ...own } = metadata;
      const before = [this.#seed, this.#lr];
      try {
        [this.seed, this.lr] = [seed, JSON.parse(lr)];
      } catch (error) {
        [this.#seed, this.#lr] = before;
        throw new FqtError(`the checkpoint is damaged: ${error.message} in its metadata`, "FQT502");
      }
      for (const spec of this.manifest.state) {
        this.#state.set(spec.name, new this.#ort.Tensor(spec.dtype, state.get(spec.name), spec.shape));
      }
      return own;
    });
  }

  /** Give the memory of both sessions back; nothing else may be called afterwards. */
  async release() {
    await this.#alone(async () => {
      await this.#train.release();
      await this.#prediction?.release();
    });
    this.#busy = true;
  }

  async #alone(action) {
    if (this.#busy) throw new FqtError("another call is not done, or the model was released", "FQT512", "await it first");
    this.#busy = true;
    try {
      return await action();
    } finally {
      this.#busy = false;
    }
  }

  async #step(batch) {
    const specs = this.manifest.inputs;
    checkCount("step", specs, batch);
    const given = specs.map((spec, i) => asInput(spec, batch[i], spec.shape[0]));
    specs.forEach((spec, i) => checkValues(spec, given[i]));
    const { Tensor } = this.#ort;
    const feeds = Object.fromEntries(this.#state);
    specs.forEach((spec, i) => (feeds[spec.name] = new Tensor(spec.dtype, given[i], spec.shape)));
    feeds.seed = new Tensor("int64", BigInt64Array.of(this.#seed), []);
    feeds.lr = new Tensor("float32", Float32Array.from(this.#lr), [this.#lr.length]);
    const results = await this.#run(this.#train, feeds);
    for (const { name } of this.manifest.state) this.#state.set(name, results[name + NEXT] ?? this.#state.get(name));
    this.#logits = results.logits.data;
    return results.loss.data[0];
  }

  async #predict(inputs) {
    if (this.#prediction === undefined) {
      throw new FqtError("the prediction was not loaded", "FQT501", "give load the file NAME.predict.onnx");
    }
    const specs = this.manifest.inputs.filter((spec) => spec.role === "input");
    checkCount("predict", specs, inputs);
    const sizes = specs.map((spec) => sizeOf(spec.shape.slice(1)));
    const [rows, ...rest] = this.manifest.logits.shape;
    const samples = Math.ceil((inputs[0]?.length ?? 0) / sizes[0]);
    const all = specs.map((spec, i) => asInput(spec, inputs[i], samples));
    specs.forEach((spec, i) => checkValues(spec, all[i]));
    const perRow = (rows / this.batch) * sizeOf(rest);
    const logits = new Float32Array(samples * perRow);
    const feeds = Object.fromEntries(this.manifest.predict_state.map((name) => [name, this.#state.get(name)]));
    for (let first = 0; first < samples; first += this.batch) {
      specs.forEach((spec, i) => {
        const padded = new (BY_DTYPE.get(spec.dtype).array)(this.batch * sizes[i]);
        padded.set(all[i].subarray(first * sizes[i], (first + this.batch) * sizes[i]));
        if (spec.values !== null) padded.fill(padded[0], Math.min(samples - first, this.batch) * sizes[i]);
        feeds[spec.name] = new this.#ort.Tensor(spec.dtype, padded, spec.shape);
      });
      const results = await this.#run(this.#prediction, feeds);
      logits.set(results.logits.data.subarray(0, (samples - first) * perRow), first * perRow);
    }
    return logits;
  }

  async #fit(data, epochs, signal) {
    const specs = this.manifest.inputs;
    checkCount("fit", specs, data);
    const sizes = specs.map((spec) => sizeOf(spec.shape) / this.batch);
    const samples = Math.floor(data[0].length / sizes[0]);
    if (samples < this.batch || data.some((values, i) => values.length !== samples * sizes[i])) {
      const found = specs.map((spec, i) => `${data[i].length / sizes[i]} of ${spec.name}`).join(", ");
      throw new FqtError(`${found}; a batch takes ${this.batch} samples`, "FQT510");
    }
    const label = specs.findIndex((spec) => spec.role === "target" && spec.values !== null);
    const isClassified = this.manifest.classes !== null && label >= 0;
    const lowest = isClassified ? Number(specs[label].values.low) : 0;
    const perEpoch = Math.floor(samples / this.batch);
    const done = { steps: 0, loss: NaN, cancelled: false };
    for (let epoch = 0; epoch < epochs; epoch++) {
      const order = shuffled(samples);
      for (let batch = 0; batch < perEpoch; batch++) {
        if (signal?.aborted) return { ...done, cancelled: true };
        const rows = order.subarray(batch * this.batch, (batch + 1) * this.batch);
        const batchOfData = data.map((values, i) => gathered(values, rows, sizes[i]));
        done.loss = await this.#step(batchOfData);
        done.steps += 1;
        const accuracy = isClassified ? accuracyOf(this.#logits, batchOfData[label], lowest) : null;
        const detail = { epoch, step: done.steps, steps: epochs * perEpoch, loss: done.loss, accuracy };
        this.dispatchEvent(new CustomEvent("progress", { detail }));
        await othersTurn(); // a page draws and takes clicks between steps
      }
    }
    return done;
  }

  async #run(session, feeds) {
    try {
      const names = session.inputNames; // a step does without the state that only a prediction needs
      return await session.run(Object.fromEntries(names.map((name) => [name, feeds[name]])));
    } catch (error) {
      throw new FqtError(`ONNX Runtime failed: ${error.message ?? error}`, "FQT502", this.#advice);
    }
  }
}

/** Lets other events have their turn. A timer would do too, but browsers have the fifth one in a row wait 4 ms. */
function othersTurn() {
  if (globalThis.setImmediate !== undefined) return new Promise((resolve) => setImmediate(resolve));
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

/** FQT505 unless there are as many arrays as the model has inputs for. */
function checkCount(method, specs, arrays) {
  if (arrays?.length !== specs.length) {
    const names = specs.map((spec) => spec.name).join(", ");
    throw new FqtError(`${method} takes ${names}, and got ${arrays?.length ?? 0} arrays`, "FQT505");
  }
}

/** The content of a file that is given as such, by URL, or in Node by path. */
async function contentOf(file) {
  if (file === undefined || file instanceof Uint8Array) return file;
  if (file instanceof ArrayBuffer) return new Uint8Array(file);
  const inNode = globalThis.process?.versions?.node !== undefined;
  try {
    if (inNode && !/^https?:/.test(String(file))) {
      const { readFile } = await import("node:fs/promises");
      return new Uint8Array(await readFile(file));
    }
    const response = await fetch(file);
    if (!response.ok) throw new Error(`status ${response.status}`);
    return new Uint8Array(await response.arrayBuffer());
  } catch (error) {
    throw new FqtError(`cannot read ${file}: ${error.message}`, "FQT502");
  }
}

function nameOf(file) {
  return typeof file === "string" || file instanceof URL ? String(file) : "the model";
}

/**
 * Options that callers need not know. The files are folded when they are exported: in WebAssembly, what ONNX Runtime optimizes
 * again takes a second or more of loading, and steps become no faster.
 */
function defaultsFor(ort, { executionProviders = ["wasm"] }) {
  const inWasm = ort.env?.versions?.web !== undefined && executionProviders.every((each) => (each.name ?? each) === "wasm");
  return inWasm ? { graphOptimizationLevel: "disabled" } : {};
}

async function opened(ort, content, options, name) {
  try {
    return await ort.InferenceSession.create(content, options);
  } catch (error) {
    throw new FqtError(`ONNX Runtime cannot load ${name}: ${error.message ?? error}`, "FQT502", adviceFor(options));
  }
}

/** What to do when ONNX Runtime fails: of its execution providers, WebGPU and WebNN do not run a step. */
function adviceFor({ executionProviders = [] }) {
  const other = executionProviders.map((each) => each.name ?? each).find((name) => ["webgpu", "webnn"].includes(name));
  return other && `${other} does not run every op of a step: load with executionProviders: ["wasm"]`;
}

/** The numbers below `count` in random order. */
function shuffled(count) {
  const order = Uint32Array.from({ length: count }, (_, i) => i);
  for (let last = count - 1; last > 0; last--) {
    const other = Math.floor(Math.random() * (last + 1));
    [order[last], order[other]] = [order[other], order[last]];
  }
  return order;
}

/** The rows of `values` that `rows` names, `size` numbers each. */
function gathered(values, rows, size) {
  const kind = ArrayBuffer.isView(values) ? values.constructor : Array;
  const result = new kind(rows.length * size);
  rows.forEach((row, place) => {
    for (let i = 0; i < size; i++) result[place * size + i] = values[row * size + i];
  });
  return result;
}

/** The share of rows whose largest logit is that of the label; for one label a row, `lowest` for the first class. */
function accuracyOf(logits, labels, lowest) {
  const classes = logits.length / labels.length;
  let right = 0;
  for (let row = 0; row < labels.length; row++) {
    const scores = logits.subarray(row * classes, (row + 1) * classes);
    right += Number(scores.indexOf(Math.max(...scores)) === Number(labels[row]) - lowest);
  }
  return right / labels.length;
}
