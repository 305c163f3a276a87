import { BY_DTYPE, sizeOf } from "./element_types.js";
import { FqtError } from "./error.js";

/**
 * The values of one input as the typed array that ONNX Runtime takes; numbers become 64-bit integers where the model has those.
 *
 * @param {{name: string, shape: number[], dtype: string}} spec
 * @param {ArrayLike<number> | ArrayLike<bigint>} values in row-major order
 * @param {number} samples how many; the shape of each is the spec's
 */
export function asInput(spec, values, samples) {
  const size = samples * sizeOf(spec.shape.slice(1));
  if (values?.length !== size) {
    const got = values?.length === undefined ? `a ${typeof values}` : `${values.length} numbers`;
    throw new FqtError(`${spec.name} is ${got}, expected ${size} for ${samples} samples`, "FQT505");
  }
  const kind = BY_DTYPE.get(spec.dtype).array;
  const array = values instanceof kind ? values : converted(spec, values, kind);
  if (array instanceof Float32Array) {
    const bad = array.findIndex((value) => !Number.isFinite(value));
    if (bad >= 0) throw new FqtError(`${spec.name}[${bad}] is ${array[bad]}`, "FQT506");
  }
  return array;
}

function converted(spec, values, kind) {
  try {
    return kind === BigInt64Array ? BigInt64Array.from(values, BigInt) : kind.from(values, Number);
  } catch (error) {
    throw new FqtError(`${spec.name} is not ${spec.dtype}: ${error.message}`, "FQT505");
  }
}

/** FQT507 unless all integers are those that the step indexes by: labels, or rows of a table. */
export function checkValues(spec, values) {
  if (spec.values === null) return;
  const ranges = spec.columns?.length ? spec.columns : [spec.values];
  const bad = values.findIndex((value, i) => {
    const { low, high, ignore_index: ignored } = ranges[i % ranges.length];
    return (value < low || value >= high) && (ignored === null || Number(value) !== ignored);
  });
  if (bad >= 0) {
    const { low, high } = ranges[bad % ranges.length];
    throw new FqtError(`${spec.name}[${bad}] is ${values[bad]}, expected an integer from ${low} to ${high - 1}`, "FQT507");
  }
}
