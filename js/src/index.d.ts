/** A mistake that the caller can mend; `code` is one of docs/errors.md. */
export class FqtError extends Error {
  constructor(message: string, code: string, hint?: string);
  readonly code: string;
  readonly hint?: string;
}

/** The content of a file, or where it is: a URL, or a path in Node. */
export type File = Uint8Array | ArrayBuffer | string | URL;
/** Numbers, row by row; BigInt64Array is taken as it is where the model has 64-bit integers. */
export type Numbers = ArrayLike<number> | ArrayLike<bigint>;

export interface TensorSpec {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: string;
}

/** One array of a batch; `values` are the integers that it may hold, null if any. */
export interface InputSpec extends TensorSpec {
  readonly role: "input" | "target";
  readonly values: { readonly low: number; readonly high: number; readonly ignore_index: number | null } | null;
  readonly columns?: readonly { readonly low: number; readonly high: number; readonly ignore_index: number | null }[];
}

/** What the compiler says about a model; the fields of manifest.json that matter here. */
export interface Manifest {
  readonly name: string;
  readonly inputs: readonly InputSpec[];
  readonly logits: TensorSpec;
  readonly classes: number | null;
  readonly state: readonly (TensorSpec & { readonly role: string })[];
  readonly predict_state: readonly string[];
  readonly fingerprint: string;
}

/** The detail of an event of type "progress"; `accuracy` is that of the batch, null where targets are no labels. */
export interface Progress {
  readonly epoch: number;
  readonly step: number;
  readonly steps: number;
  readonly loss: number;
  readonly accuracy: number | null;
}

/** A model that is trained step by step; one call at a time. */
export class Trainer extends EventTarget {
  private constructor();
  readonly manifest: Manifest;
  readonly batch: number;
  readonly stepCount: number;
  readonly lastLogits: Float32Array | null;
  get seed(): bigint;
  set seed(value: bigint | number);
  get lr(): number | number[];
  set lr(value: number | number[]);
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

/** Load what `fqt-compile --emit onnx-step` wrote; `ort` is the module onnxruntime-web or onnxruntime-node. */
export function load(
  ort: object,
  files: { step: File; state: File; predict?: File },
  options?: object,
): Promise<Trainer>;
