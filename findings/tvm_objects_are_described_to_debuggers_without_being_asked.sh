#!/usr/bin/env bash
# TVM 0.27 describes every kernel for the CPU to debuggers (DWARF), as a function of a source file that does not exist, and no
# setting of the target or of the compilation leaves it out: a library that was never asked for debug information carries
# it to the device, and LLVM takes its time over it. Linking with -Wl,-S drops it and keeps the functions' names.
# Seen: for one addition of vectors, .debug_info, .debug_loc and others, 2,599 bytes beside 2,861 of code; none after
# linking with -Wl,-S. In libraries of hundreds of kernels it was two fifths of the file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check apache-tvm==0.27.0.post1
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import re
import subprocess

import tvm
from tvm import te
from tvm.support.cc import cross_compiler

x, y = (te.placeholder((1024,), "float32", name=name) for name in "xy")
z = te.compute((1024,), lambda i: x[i] + y[i], name="z")
function = te.create_prim_func([x, y, z]).with_attr("global_symbol", "add")
module = tvm.compile(tvm.IRModule({"add": function}), tvm.target.Target({"kind": "llvm"}))
module.export_library("as_it_is.so")
module.export_library("without.so", fcompile=cross_compiler("cc", ["-Wl,-S"]))
sizes = {}
for name in ("as_it_is", "without"):
    text = subprocess.run(["readelf", "-S", "-W", f"{name}.so"], capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"\] (\.\S+)\s+\w+\s+[0-9a-f]+ [0-9a-f]+ ([0-9a-f]+)", text)
    sections = {section: int(size, 16) for section, size in rows}
    sizes[name] = {section: size for section, size in sections.items() if section.startswith(".debug")}
    print(name, "code", sections[".text"], "bytes; for debuggers", sizes[name])
assert ".debug_info" in sizes["as_it_is"] and not sizes["without"], "the behaviour changed"
PY
