// Train an artifact through the C interface in Node, with koffi (`npm install koffi`): arguments and output of train.py.
//
//   make c-api
//   node examples/c/train.mjs build/c-api-x86_64/lib/libfqt_runtime.so digits_cnn.fqt digits.raw 5 checkpoint.safetensors
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";

const koffi = createRequire(`${process.cwd()}/`)("koffi"); // of the folder that this runs in
const [path, artifact, data, epochs, checkpoint] = process.argv.slice(2);

const library = koffi.load(path);
const Tensor = koffi.struct("fqt_tensor", { name: "str", dtype: "str", shape: "int64_t *", ndim: "size_t", bytes: "size_t" });
koffi.opaque("fqt_session");
const lastError = library.func("const char *fqt_last_error()");
const load = library.func("int fqt_load(const char *path, _Out_ fqt_session **session)");
const free = library.func("void fqt_free(fqt_session *session)");
const step = library.func(
  "int fqt_step(fqt_session *session, const void *x, size_t x_bytes, const void *y, size_t y_bytes, _Out_ float *loss)",
);
const save = library.func("int fqt_save_checkpoint(const fqt_session *session, const char *path)");
const resume = library.func("int fqt_load_checkpoint(fqt_session *session, const char *path)");
const inputs = ["fqt_x", "fqt_y"].map((name) => library.func(`const fqt_tensor *${name}(const fqt_session *session)`));

function check(code) {
  if (code === 0) return;
  console.error(lastError());
  process.exit(1);
}

const opened = [null];
check(load(artifact, opened));
const [session] = opened;
if (checkpoint !== undefined && existsSync(checkpoint)) check(resume(session, checkpoint));
const [x, y] = inputs.map((describe) => koffi.decode(describe(session), Tensor));
const batch = Number(koffi.decode(x.shape, "int64_t"));
const [xSize, ySize] = [Number(x.bytes) / batch, Number(y.bytes) / batch];
const rows = readFileSync(data);
const samples = Math.floor(rows.length / (xSize + ySize));
const loss = [0];
let count = 0;
for (let epoch = 0; epoch < Number(epochs); epoch++) {
  for (let first = 0; first + batch <= samples; first += batch) {
    const starts = Array.from({ length: batch }, (_, i) => (first + i) * (xSize + ySize));
    const images = Buffer.concat(starts.map((start) => rows.subarray(start, start + xSize)));
    const labels = Buffer.concat(starts.map((start) => rows.subarray(start + xSize, start + xSize + ySize)));
    check(step(session, images, images.length, labels, labels.length, loss));
    console.log(`step ${++count} loss ${loss[0]}`);
  }
}
if (checkpoint !== undefined) check(save(session, checkpoint));
free(session);
