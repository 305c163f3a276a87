// What a trainer does with a small model of its own: `FQT_STEP=digits.step.onnx node --test`.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import test, { before } from "node:test";

import * as ort from "onnxruntime-node";

import { FqtError, load } from "../src/index.js";

const step = process.env.FQT_STEP;
const beside = (end) => step.replace("step.onnx", end);
const [predict, state] = [beside("predict.onnx"), beside("state.safetensors")];
let model, x, y;

const fails = (code, action) =>
  assert.rejects(async () => action(), (error) => error instanceof FqtError && error.code === code);

before(async () => {
  model = await load(ort, { step, predict, state });
  const random = (count, make) => Array.from({ length: count }, make);
  x = Float32Array.from(random(model.batch * 64 * 3, (_, i) => Math.sin(i)));
  y = random(model.batch * 3, (_, i) => i % 10);
});

const first = (values, samples, size) => values.slice(0, samples * size);
const batch = () => [first(x, model.batch, 64), first(y, model.batch, 1)];
const fresh = () => load(ort, { step, predict, state });

test("plain numbers, typed arrays and bytes give the same step", async () => {
  const [a, b] = [await fresh(), await load(ort, { step: await readFile(step), state: new Uint8Array(await readFile(state)) })];
  const [images, labels] = batch();
  const loss = await a.step(images, labels);
  assert.equal(await b.step(Array.from(images), BigInt64Array.from(labels, BigInt)), loss);
  assert.ok(loss > 1 && loss < 5);
  assert.equal(a.lastLogits.length, a.batch * 10);
  assert.equal(a.stepCount, 1);
});

test("the learning rate counts", async () => {
  const [a, b] = [await fresh(), await fresh()];
  b.lr = 0;
  for (const each of [a, b]) for (let i = 0; i < 3; i++) await each.step(...batch());
  const before = await (await fresh()).predict(batch()[0]);
  assert.notDeepEqual(await a.predict(batch()[0]), before);
  const weights = async (trainer) => Buffer.from(await trainer.saveCheckpoint());
  assert.notEqual(Buffer.compare(await weights(a), await weights(b)), 0);
});

test("a checkpoint holds seed, rate, step and state", async () => {
  const [a, b] = [await fresh(), await fresh()];
  await a.step(...batch());
  a.lr = 2e-3;
  a.seed = -5n;
  const content = await a.saveCheckpoint({ epoch: "3" });
  assert.deepEqual(await b.loadCheckpoint(content), { epoch: "3" });
  assert.deepEqual([b.lr, b.seed, b.stepCount], [2e-3, -5n, 1]);
  assert.equal(await b.step(...batch()), await a.step(...batch()));
});

test("fit tells its progress", async () => {
  const trainer = await fresh();
  const told = [];
  trainer.addEventListener("progress", ({ detail }) => told.push(detail));
  const done = await trainer.fit([x, y], { epochs: 2 });
  assert.deepEqual([done.steps, done.cancelled, told.length], [6, false, 6]);
  assert.deepEqual(told.map(({ epoch, step }) => [epoch, step]), [[0, 1], [0, 2], [0, 3], [1, 4], [1, 5], [1, 6]]);
  assert.ok(told.every(({ steps, loss, accuracy }) => steps === 6 && loss > 0 && accuracy >= 0 && accuracy <= 1));
  assert.equal(told.at(-1).loss, done.loss);
});

test("fit ends after the step in which it is cancelled", async () => {
  const trainer = await fresh();
  const stop = new AbortController();
  trainer.addEventListener("progress", ({ detail }) => detail.step === 2 && stop.abort());
  const done = await trainer.fit([x, y], { epochs: 100, signal: stop.signal });
  assert.deepEqual([done.steps, done.cancelled, trainer.stepCount], [2, true, 2]);
});

test("mistakes have codes, and change nothing", async () => {
  const trainer = await fresh();
  const [images, labels] = batch();
  const bad = (values, place, value) => Object.assign(values.slice(), { [place]: value });
  await fails("FQT505", () => trainer.step(images.slice(1), labels));
  await fails("FQT505", () => trainer.step(images, bad(labels, 0, 0.5)));
  await fails("FQT505", () => trainer.step(undefined, labels));
  await fails("FQT505", () => trainer.step(images));
  await fails("FQT505", () => trainer.predict(images, labels));
  await fails("FQT506", () => trainer.step(bad(images, 3, NaN), labels));
  await fails("FQT507", () => trainer.step(images, bad(labels, 0, 10)));
  await fails("FQT507", () => trainer.step(images, bad(labels, 0, -1)));
  await fails("FQT505", () => trainer.predict(images.slice(1)));
  await fails("FQT510", () => trainer.fit([images, labels.slice(1)]));
  await fails("FQT202", () => (trainer.lr = -1));
  await fails("FQT202", () => (trainer.lr = [1, 2]));
  await fails("FQT202", () => (trainer.seed = 0.5));
  await fails("FQT202", () => (trainer.seed = 2n ** 63n));
  assert.equal(trainer.stepCount, 0);
  const running = trainer.step(images, labels);
  await fails("FQT512", () => trainer.step(images, labels));
  await running;
  assert.equal(trainer.stepCount, 1);
  await trainer.release();
  await fails("FQT512", () => trainer.step(images, labels));
});

test("files that do not fit are refused", async () => {
  const content = new Uint8Array(await readFile(step));
  await fails("FQT502", () => load(ort, { step: "absent.onnx", state }));
  await fails("FQT502", () => load(ort, { step: content.subarray(0, 100_000), state }));
  await fails("FQT501", () => load(ort, { step: new Uint8Array(), state }));
  await fails("FQT501", () => load(ort, { step }));
  await fails("FQT501", async () => (await load(ort, { step, state })).predict(batch()[0]));
});

test("a provider that does not run steps is named", async () => {
  const create = async () => {
    throw new Error("no");
  };
  const browser = { ...ort, env: { versions: { web: "1" } }, InferenceSession: { create } };
  const told = (options) => load(browser, { step, state }, options).catch((error) => error.message);
  assert.match(await told({ executionProviders: ["webgpu"] }), /: no; webgpu does not run .*\["wasm"\]/);
  assert.match(await told({ executionProviders: [{ name: "webnn" }, "wasm"] }), /; webnn does not run/);
  assert.match(await told({}), /: no$/);
});

test("damaged checkpoints are refused, and change nothing", async () => {
  const trainer = await fresh();
  const content = await trainer.saveCheckpoint();
  const changed = (place, value) => Object.assign(content.slice(), { [place]: value });
  const replaced = (from, to) => new Uint8Array(Buffer.from(Buffer.from(content).toString("latin1").replace(from, to), "latin1"));
  await trainer.step(...batch());
  await fails("FQT502", () => trainer.loadCheckpoint(changed(content.length - 1, 7)));
  await fails("FQT502", () => trainer.loadCheckpoint(content.subarray(0, content.length - 4)));
  await fails("FQT502", () => trainer.loadCheckpoint(content.subarray(0, 5)));
  await fails("FQT502", () => trainer.loadCheckpoint(changed(8, 0x20)));
  await fails("FQT503", () => trainer.loadCheckpoint(replaced('"fqt_format":"2"', '"fqt_format":"9"')));
  await fails("FQT504", () => trainer.loadCheckpoint(replaced("fqt_fingerprint", "fqt_fingerprinT")));
  assert.equal(trainer.stepCount, 1);
  assert.deepEqual(await trainer.loadCheckpoint(content), {});
  assert.equal(trainer.stepCount, 0);
});
