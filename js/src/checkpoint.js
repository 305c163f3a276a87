import { BY_DTYPE, BY_STORED, sizeOf } from "./element_types.js";
import { FqtError } from "./error.js";

const FORMAT = 2;
const FINGERPRINT = "fqt_fingerprint";
const FORMAT_KEY = "fqt_format";
const DIGEST = "fqt_sha256";
const NO_DIGEST = "0".repeat(64);

/**
 * The content of a checkpoint, a safetensors file: the same that Python and C write and read.
 *
 * @param {object} manifest the manifest of what is trained
 * @param {Map<string, ArrayBufferView>} state all arrays by name
 * @param {Record<string, string>} metadata what else a resumed run needs, as text
 * @returns {Promise<Uint8Array>}
 */
export async function writeCheckpoint(manifest, state, metadata) {
  const header = {
    __metadata__: { ...metadata, [FINGERPRINT]: manifest.fingerprint, [FORMAT_KEY]: String(FORMAT), [DIGEST]: NO_DIGEST },
  };
  // The widest elements first, so that each array lies at a multiple of its element's size.
  const width = (spec) => BY_DTYPE.get(spec.dtype).array.BYTES_PER_ELEMENT;
  const specs = [...manifest.state].sort((a, b) => width(b) - width(a) || (a.name < b.name ? -1 : 1));
  let end = 0;
  for (const spec of specs) {
    checkNoNaN(spec.name, state.get(spec.name));
    const begin = end;
    end += state.get(spec.name).byteLength;
    header[spec.name] = { dtype: BY_DTYPE.get(spec.dtype).stored, shape: spec.shape, data_offsets: [begin, end] };
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const first = 8 + Math.ceil(text.length / 8) * 8;
  const content = new Uint8Array(first + end).fill(0x20, 8, first);
  new DataView(content.buffer).setBigUint64(0, BigInt(first - 8), true);
  content.set(text, 8);
  for (const spec of specs) {
    const array = state.get(spec.name);
    const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    content.set(bytes, first + header[spec.name].data_offsets[0]);
  }
  content.set(new TextEncoder().encode(await digestOf(content)), digestPlace(content));
  return content;
}

/**
 * The arrays and the metadata of a checkpoint of the model with `manifest`.
 *
 * FQT502 if it is damaged, FQT503 for another format, FQT504 if it is no checkpoint or belongs to another model, FQT506 if
 * it holds NaN.
 *
 * @param {Uint8Array} content
 * @param {object} manifest
 */
export async function readCheckpoint(content, manifest) {
  const { arrays, metadata } = readTensors(content);
  const { [FINGERPRINT]: fingerprint, [FORMAT_KEY]: format, [DIGEST]: digest, ...own } = metadata;
  if (fingerprint === undefined || format === undefined) {
    throw new FqtError("the file is not a checkpoint", "FQT504");
  }
  if (format !== "1" && format !== String(FORMAT)) {
    throw new FqtError(`the checkpoint has format ${format}, this package reads 1 to ${FORMAT}`, "FQT503");
  }
  if ((digest !== undefined || format !== "1") && (await digestOf(content)) !== digest) {
    throw new FqtError("the checkpoint is damaged: its digest is another", "FQT502", "go on from an older one");
  }
  if (fingerprint !== manifest.fingerprint) {
    throw new FqtError(
      `the checkpoint was saved by another model or with other options than ${manifest.name}`,
      "FQT504",
      "resume with the model that wrote it",
    );
  }
  const state = new Map();
  for (const spec of manifest.state) {
    const found = arrays.get(spec.name);
    const fits = found?.dtype === spec.dtype && String(found.shape) === String(spec.shape);
    if (!fits) {
      const got = found === undefined ? "missing" : `${found.dtype}[${found.shape}]`;
      throw new FqtError(`${spec.name} is ${got}, expected ${spec.dtype}[${spec.shape}]`, "FQT502");
    }
    checkNoNaN(spec.name, found.data);
    state.set(spec.name, found.data);
  }
  if (arrays.size !== state.size) throw new FqtError("the checkpoint holds more than the state", "FQT502");
  return { state, metadata: own };
}

/** The arrays of a safetensors file by name, copied, and its metadata. */
function readTensors(content) {
  const damaged = (why) => new FqtError(`the checkpoint is damaged: ${why}`, "FQT502");
  const view = new DataView(content.buffer, content.byteOffset, content.byteLength);
  const length = content.byteLength < 8 ? Infinity : Number(view.getBigUint64(0, true));
  if (8 + length > content.byteLength) throw damaged("it ends within its header");
  let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(content.subarray(8, 8 + length)));
  } catch (error) {
    throw damaged(error.message);
  }
  const { __metadata__: metadata = {}, ...entries } = header ?? {};
  const arrays = new Map();
  for (const [name, entry] of Object.entries(entries)) {
    const dtype = BY_STORED.get(entry?.dtype);
    const [begin, end] = Array.isArray(entry?.data_offsets) ? entry.data_offsets : [];
    if (dtype === undefined || !Array.isArray(entry.shape)) throw damaged(`${name} has no type or shape`);
    const kind = BY_DTYPE.get(dtype).array;
    const size = sizeOf(entry.shape) * kind.BYTES_PER_ELEMENT;
    if (!(begin >= 0 && end === begin + size && 8 + length + end <= content.byteLength)) {
      throw damaged(`${name} lies outside of it`);
    }
    const bytes = content.slice(8 + length + begin, 8 + length + end);
    arrays.set(name, { dtype, shape: entry.shape, data: new kind(bytes.buffer, bytes.byteOffset, sizeOf(entry.shape)) });
  }
  return { arrays, metadata };
}

/** FQT506 if a float array holds NaN. */
function checkNoNaN(name, array) {
  if (!(array instanceof Float32Array || array instanceof Float64Array)) return;
  const bad = array.findIndex(Number.isNaN);
  if (bad >= 0) throw new FqtError(`${name}[${bad}] is NaN`, "FQT506", "go on from an older checkpoint");
}

/** Where the digest lies in the content of a checkpoint; -1 if it has none. */
function digestPlace(content) {
  const key = `"${DIGEST}":"`;
  const length = Number(new DataView(content.buffer, content.byteOffset).getBigUint64(0, true));
  // One character for each byte: a place in the text is a place in the content.
  const place = Array.from(content.subarray(8, 8 + length), (byte) => String.fromCharCode(byte)).join("").indexOf(key);
  return place < 0 ? -1 : 8 + place + key.length;
}

/** The SHA-256 digest of a checkpoint with zeros in place of its own entry; undefined if it has none. */
async function digestOf(content) {
  const place = digestPlace(content);
  if (place < 0) return undefined;
  if (globalThis.crypto?.subtle === undefined) {
    throw new FqtError("checkpoints need crypto.subtle", "FQT509", "serve the page over https, or from localhost");
  }
  const plain = content.slice();
  plain.fill(0x30, place, place + NO_DIGEST.length);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", plain));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
