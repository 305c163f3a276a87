// What the tests do with a trainer, in Node and in a browser alike.

/**
 * Train on all of `x` and `y`, batch by batch, with checkpoints after the first step and the last, and go on from Python's.
 *
 * @param {object} model a Trainer or a RemoteTrainer
 * @param {{ x: Float32Array, y: BigInt64Array, python: Uint8Array }} given
 */
export async function runSteps(model, { x, y, python }) {
  const size = x.length / y.length;
  const batch = (i) => [
    x.subarray(i * model.batch * size, (i + 1) * model.batch * size),
    y.subarray(i * model.batch, (i + 1) * model.batch),
  ];
  const [losses, milliseconds] = [[], []];
  let first;
  const steps = y.length / model.batch;
  for (let i = 0; i < steps; i++) {
    const begin = performance.now();
    losses.push(await model.step(...batch(i)));
    milliseconds.push(performance.now() - begin);
    first ??= await model.saveCheckpoint();
  }
  const logits = [...(await model.predict(x.subarray(0, (model.batch + 3) * size)))];
  await set(model, { lr: 5e-4, seed: 11n });
  const checkpoint = await model.saveCheckpoint({ epoch: "1" });
  const stepCount = model.stepCount;

  const metadata = await model.loadCheckpoint(python);
  const before = { metadata, step: model.stepCount, lr: model.lr, seed: String(model.seed) };
  const resumed = { ...before, loss: await model.step(...batch(0)) };
  const own = { metadata: await model.loadCheckpoint(checkpoint), step: model.stepCount, seed: String(model.seed) };
  milliseconds.sort((a, b) => a - b);
  return { losses, logits, stepCount, resumed, own, checkpoint, first, median: milliseconds[steps >> 1] };
}

/**
 * For each of the seeds below `seeds`, the share of `testX` that is classified as `testY` after `epochs` passes over `x` and `y`,
 * in their order.
 *
 * @param {object} model a Trainer or a RemoteTrainer, as loaded
 */
export async function accuraciesAfter(model, seeds, epochs, data) {
  const initial = await model.saveCheckpoint();
  const accuracies = [];
  for (let seed = 0; seed < seeds; seed++) {
    await model.loadCheckpoint(initial);
    await set(model, { seed });
    accuracies.push(await accuracyAfter(model, epochs, data));
  }
  return accuracies;
}

const set = (model, settings) => (model.configure ? model.configure(settings) : Object.assign(model, settings));

async function accuracyAfter(model, epochs, { x, y, testX, testY }) {
  const size = x.length / y.length;
  const steps = Math.floor(y.length / model.batch);
  for (let i = 0; i < epochs * steps; i++) {
    const [first, last] = [i % steps, (i % steps) + 1].map((step) => step * model.batch);
    await model.step(x.subarray(first * size, last * size), y.subarray(first, last));
  }
  const logits = await model.predict(testX);
  const classes = logits.length / testY.length;
  const right = testY.filter((label, i) => {
    const scores = logits.subarray(i * classes, (i + 1) * classes);
    return scores.indexOf(Math.max(...scores)) === Number(label);
  });
  return right.length / testY.length;
}
