#!/usr/bin/env bash
# apache-tvm-ffi 0.1.15, PyTorch 2.13.0 (CPU): the first error that a process raises inside tvm_ffi takes about a second,
# every later one less than a millisecond. Each error notes its stack in C++, and the first one reads the symbols of every
# library that is loaded; tvm_ffi itself imports PyTorch where it is installed. Whoever catches the error, or only asks
# whether a type is known, pays too: `import tvm` (apache-tvm 0.27.0) asks for a type of disco, which its wheel is built
# without, so that almost half of what it takes goes to an error that nobody sees. TVM_TRACEBACK_LIMIT=0 does not help.
# Seen: 1.04 s, then 0.0001 s; a quarter of that without PyTorch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check apache-tvm-ffi==0.1.15.post2 numpy
cat > "$folder/first_error.py" <<'PY'
import time

from tvm_ffi import core


def ask() -> float:
    """Seconds until a type that nobody registered is found to be unknown."""
    start = time.perf_counter()
    assert core._object_type_key_to_index("no.such.type") is None
    return time.perf_counter() - start


first, second = ask(), ask()
print(f"first {first:.4f} s, second {second:.6f} s")
PY
without=$("$folder/venv/bin/python" "$folder/first_error.py")
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0  # the CPU build will do
with=$("$folder/venv/bin/python" "$folder/first_error.py")
printf 'without PyTorch: %s\nwith PyTorch:    %s\n' "$without" "$with"
"$folder/venv/bin/python" - "$with" <<'PY'
import re
import sys

first, second = map(float, re.findall(r"[\d.]+(?= s)", sys.argv[1]))
assert first > 0.2 and first > 100 * second, "the behaviour changed"
PY
