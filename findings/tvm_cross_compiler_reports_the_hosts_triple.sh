#!/usr/bin/env bash
# TVM 0.27: cross_compiler("aarch64-linux-gnu-g++").get_target_triple() is not that compiler's triple but this machine's.
# export_library asks it where a module holds no LLVM code of its own (all kernels come as objects), and packs the rest of
# the module into an object for the wrong architecture, which the cross linker refuses. Naming the triple by hand helps.
# Seen: the triple that the host's own C compiler prints, whatever compiler is named. No cross compiler is needed to see it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check apache-tvm==0.27.0.post1
"$folder/venv/bin/python" - <<'PY'
import platform
from tvm.support.cc import cross_compiler

triple = cross_compiler("no-such-machine-linux-gnu-g++").get_target_triple().strip()
print("triple of no-such-machine-linux-gnu-g++:", triple)
assert triple.startswith(platform.machine()), "the behaviour changed"
PY
