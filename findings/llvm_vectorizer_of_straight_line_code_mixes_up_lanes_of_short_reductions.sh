#!/usr/bin/env bash
# LLVM 22 in apache-tvm 0.27.0.post1, on AVX-512: the smallest of 23 products in each of three rows, compared as integers
# in the order of floats and unrolled, is wrong for a row: one number enters without the flip of its bits. LLVM's vectorizer
# of straight-line code (SLP) makes it so; with -vectorize-slp=false the result is right. A third of the
# rows is wrong, by any factor: a minimum of -0.0009 came out as -11274. Processors without AVX-512 are not known to be affected.
# What to do: pass "cl-opt": ["-vectorize-slp:bool=false"] with TVM's target.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.15.post2 numpy==2.4.6
cat > kernel.py <<'PY'
import numpy as np
import tvm
from tvm.script import tirx as T


@T.prim_func(s_tir=True)
def smallest(a: T.Buffer((3, 23), "float32"), b: T.Buffer((23,), "float32"), result: T.Buffer((3,), "float32")):
    T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
    keys = T.sblock_alloc_buffer((3,), "int32")
    for i, j in T.grid(3, 23):
        with T.sblock("keys"):
            row, column = T.axis.remap("SR", [i, j])
            with T.init():
                keys[row] = 2147483647
            keys[row] = T.min(
                keys[row],
                T.Select(
                    not T.Cast(
                        "bool",
                        T.Cast(
                            "int8",
                            a[row, column] * b[column]
                            == T.reinterpret("float32", T.reinterpret("uint32", a[row, column] * b[column])),
                        ),
                    ),
                    -2143289345,
                    T.reinterpret("int32", a[row, column] * b[column])
                    ^ T.reinterpret("int32", a[row, column] * b[column]) >> 31 & 2147483647,
                ),
            )
    for i in range(3):
        with T.sblock("result"):
            row = T.axis.spatial(3, i)
            result[row] = T.reinterpret("float32", keys[row] ^ keys[row] >> 31 & 2147483647)


generator = np.random.default_rng(0)
batches = [(generator.standard_normal((3, 23), dtype=np.float32), generator.standard_normal(23, dtype=np.float32)) for _ in range(50)]
for options in ({}, {"cl-opt": ["-vectorize-slp:bool=false"]}):
    target = tvm.target.Target({"kind": "llvm", "mcpu": "znver4", **options})
    with target, tvm.transform.PassContext(config={"tirx.disable_assert": True}):
        function = tvm.compile(tvm.IRModule({"smallest": smallest}), target)["smallest"]
    wrong = 0
    for a, b in batches:
        result = tvm.runtime.tensor(np.zeros(3, np.float32))
        function(tvm.runtime.tensor(a), tvm.runtime.tensor(b), result)
        wrong += int((result.numpy() != (a * b).min(1)).sum())
    print(f"{'without SLP' if options else 'default'}: {wrong} of {3 * len(batches)} rows are wrong")
    assert bool(wrong) != bool(options), "the behaviour changed"
PY
venv/bin/python kernel.py
