import { FqtError } from "./error.js";

const METADATA = 14; // ModelProto.metadata_props
const KEY = 1; // StringStringEntryProto.key
const VALUE = 2; // StringStringEntryProto.value
const MANIFEST = "fqt.manifest";
const SCHEMA = 5;
const OLDEST_SCHEMA = 4;

/**
 * The manifest in the metadata of an ONNX file, which ONNX Runtime does not show to JavaScript.
 *
 * @param {Uint8Array} model the content of the file
 * @param {string} name the name of the file, for messages
 */
export function readManifest(model, name) {
  const text = findManifest(model, name);
  if (text === undefined) {
    throw new FqtError(`${name} is not an exported training step`, "FQT501", "make one with fqt-compile --emit onnx-step");
  }
  let manifest;
  try {
    manifest = JSON.parse(text);
  } catch (error) {
    throw new FqtError(`${name} is damaged: ${error.message}`, "FQT502");
  }
  if (!(OLDEST_SCHEMA <= manifest.schema_version && manifest.schema_version <= SCHEMA)) {
    throw new FqtError(
      `${name} has a manifest of version ${manifest.schema_version}, this package reads ${OLDEST_SCHEMA} to ${SCHEMA}`,
      "FQT503",
      "install the version of fqt-train that belongs to the compiler",
    );
  }
  return manifest;
}

/** The text under the manifest's key; undefined if there is none, FQT502 if the bytes are no protobuf message. */
function findManifest(model, name) {
  const utf8 = new TextDecoder();
  try {
    for (const [field, entry] of fields(model)) {
      if (field !== METADATA) continue;
      const parts = new Map(fields(entry));
      if (utf8.decode(parts.get(KEY)) === MANIFEST) return utf8.decode(parts.get(VALUE));
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new FqtError(`${name} is damaged, or not an ONNX file`, "FQT502");
  }
  return undefined;
}

/** The fields of a protobuf message that hold bytes: pairs of number and content. */
function* fields(message) {
  let place = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      if (place >= message.length || scale > 2 ** 63) throw new RangeError("the message ends within a number");
      const byte = message[place++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (place < message.length) {
    const tag = varint();
    const kind = tag % 8;
    if (kind === 0) {
      varint();
    } else if (kind === 1 || kind === 5) {
      place += kind === 1 ? 8 : 4;
    } else if (kind === 2) {
      const length = varint();
      if (place + length > message.length) throw new RangeError("the message ends within a field");
      yield [Math.floor(tag / 8), message.subarray(place, place + length)];
      place += length;
    } else {
      throw new RangeError(`a field of kind ${kind}`);
    }
  }
}
