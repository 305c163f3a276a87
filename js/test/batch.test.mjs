// What the arrays of a batch may hold: needs no ONNX Runtime. `node --test test/batch.test.mjs`
import assert from "node:assert/strict";
import test from "node:test";

import { checkValues } from "../src/batch.js";

const range = (low, high, ignored = null) => ({ low, high, ignore_index: ignored });
const refused = (message) => ({ code: "FQT507", message });

test("labels lie in one range, and one more is left out", () => {
  const spec = { name: "y", values: range(0, 10, -100), columns: [] };
  checkValues(spec, BigInt64Array.from([0n, 9n, -100n]));
  assert.throws(() => checkValues(spec, [0, 10]), refused("y[1] is 10, expected an integer from 0 to 9"));
});

test("columns of a table have ranges of their own", () => {
  const spec = { name: "x", values: range(0, 30), columns: [range(0, 2), range(5, 30), range(0, 4, -100)] };
  checkValues(spec, BigInt64Array.from([1n, 29n, 3n, 0n, 5n, -100n]));
  assert.throws(() => checkValues(spec, [1, 29, 3, 2, 5, 0]), refused("x[3] is 2, expected an integer from 0 to 1"));
  assert.throws(() => checkValues(spec, [1, -100, 3]), refused("x[1] is -100, expected an integer from 5 to 29"));
});

test("files of before say nothing of columns", () => {
  checkValues({ name: "x", values: range(0, 2) }, [0, 1, 1]);
  checkValues({ name: "x", values: null }, [7]);
});
