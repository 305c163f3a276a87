import type { File, Manifest, Numbers } from "./index.js";

export { FqtError } from "./index.js";

/** A trainer in a Web Worker: the methods and events of `Trainer`. */
export class RemoteTrainer extends EventTarget {
  private constructor();
  readonly manifest: Manifest;
  readonly batch: number;
  readonly stepCount: number;
  readonly lastLogits: Float32Array | null;
  readonly lr: number | number[];
  readonly seed: bigint;
  configure(settings: { lr?: number | number[]; seed?: bigint | number }): Promise<void>;
  step(...batch: Numbers[]): Promise<number>;
  predict(...inputs: Numbers[]): Promise<Float32Array>;
  fit(
    data: Numbers[],
    options?: { epochs?: number; signal?: AbortSignal },
  ): Promise<{ steps: number; loss: number; cancelled: boolean }>;
  saveCheckpoint(metadata?: Record<string, string>): Promise<Uint8Array>;
  loadCheckpoint(content: Uint8Array): Promise<Record<string, string>>;
  release(): Promise<void>;
}

/** Load what `fqt-compile --emit onnx-step` wrote into a Web Worker; `ort` is the URL of ONNX Runtime's module. */
export function loadInWorker(
  ort: string | URL,
  files: { step: File; state: File; predict?: File },
  options?: { numThreads?: number } & Record<string, unknown>,
): Promise<RemoteTrainer>;
