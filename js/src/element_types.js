/**
 * The element types of state and batches: NumPy's name, which ONNX Runtime shares, the name in a safetensors file, and the
 * typed array that holds them. ONNX Runtime keeps booleans in bytes.
 */
const ELEMENT_TYPES = [
  ["bool", "BOOL", Uint8Array],
  ["int8", "I8", Int8Array],
  ["uint8", "U8", Uint8Array],
  ["int16", "I16", Int16Array],
  ["uint16", "U16", Uint16Array],
  ["int32", "I32", Int32Array],
  ["uint32", "U32", Uint32Array],
  ["int64", "I64", BigInt64Array],
  ["uint64", "U64", BigUint64Array],
  ["float32", "F32", Float32Array],
  ["float64", "F64", Float64Array],
];

/** By NumPy's name: the name in a safetensors file, and the typed array. */
export const BY_DTYPE = new Map(ELEMENT_TYPES.map(([dtype, stored, array]) => [dtype, { stored, array }]));

/** By the name in a safetensors file: NumPy's name. */
export const BY_STORED = new Map(ELEMENT_TYPES.map(([dtype, stored]) => [stored, dtype]));

/** The number of elements of an array of this shape. */
export function sizeOf(shape) {
  return shape.reduce((product, extent) => product * extent, 1);
}
