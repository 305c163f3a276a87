// Compiled only: what the types allow, and with ts-expect-error what they do not.
import { FqtError, load, type Progress, type Trainer } from "../../src/index.js";
import { loadInWorker, type RemoteTrainer } from "../../src/remote_trainer.js";

export async function train(ort: object, x: Float32Array, y: BigInt64Array): Promise<Uint8Array> {
  const trainer: Trainer = await load(ort, { step: "m.step.onnx", state: new URL("https://example.org/m") });
  trainer.lr = [1e-3, 1e-4];
  trainer.seed = 3;
  trainer.addEventListener("progress", (event) => {
    const progress: Progress = (event as CustomEvent<Progress>).detail;
    console.log(progress.loss.toFixed(2), trainer.manifest.classes);
  });
  const { cancelled } = await trainer.fit([x, y], { epochs: 2, signal: new AbortController().signal });
  const loss: number = await trainer.step(Array.from(x), y);
  if (cancelled || loss > 3) throw new FqtError("it does not learn", "FQT511");
  // @ts-expect-error the state is needed
  await load(ort, { step: "m.step.onnx" });
  // @ts-expect-error labels are numbers
  await trainer.step(x, ["seven"]);
  // @ts-expect-error the batch is compiled in
  trainer.batch = 3;
  return trainer.saveCheckpoint({ epoch: "1" });
}

export async function trainInWorker(x: Float32Array, y: BigInt64Array): Promise<Float32Array> {
  const trainer: RemoteTrainer = await loadInWorker("ort.wasm.min.mjs", { step: "m.step.onnx", state: "m" }, { numThreads: 2 });
  await trainer.configure({ lr: 1e-3, seed: 3 });
  // @ts-expect-error it takes a message to the worker
  trainer.lr = 1e-3;
  await trainer.fit([x, y], { epochs: 2, signal: new AbortController().signal });
  return trainer.predict(x);
}
