"""Compile emitted CUDA source for the emulation, and load its runtime in place of NVIDIA's.

Everything but speed is real: TVM's host code, its CUDA runtime, argument passing, workspaces and streams.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parent
PREFIX = b"EMULATED:"

_HELPERS = (
    # body of an emitted helper function -> the emulation's
    (
        r'asm volatile\(\s*"mma\.sync\.aligned\.m16n8k256[^;]*?and\.popc.*?\);',
        "uint32_t a_[4] = {__a0, __a1, __a2, __a3}, b_[2] = {__b0, __b1}, c_[4] = {__c0, __c1, __c2, __c3}, d_[4];"
        " emulation::binary_mma(d_, a_, b_, c_); __d0 = d_[0]; __d1 = d_[1]; __d2 = d_[2]; __d3 = d_[3];",
    ),
    (r'asm volatile\(\s*"cp\.async\.(wait_group|commit_group).*?\);', ";"),
    (
        r'asm volatile\(\s*"cp\.async\.c[ag]\.shared\.global[^"]*,\s*(\d+)\s*;.*?\);',
        r"memcpy(emulation::shared_pointer(__dst_mem), __src_mem, \1);",
    ),
)
_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(([^)]*)\) \{')
_WAITS = re.compile(r"tvm_builtin_|ptx_|__syncthreads|__ballot_sync|__shfl")


def translate(source: str) -> str:
    """Emitted CUDA source as C++ with one launcher for each kernel."""
    marker = "#define ushort unsigned short\n#endif"
    body = source[source.index(marker) + len(marker) :] if marker in source else source
    for pattern, replacement in _HELPERS:
        body = re.sub(pattern, replacement, body, flags=re.DOTALL)
    body = body.replace("__cvta_generic_to_shared(", "emulation::shared_address(")
    left = re.search(r"asm volatile.*", body)
    assert left is None, f"the emulation does not know {left.group(0) if left else ''}"
    body = re.sub(r"__shared__ (alignas\(\d+\))", r"\1 static", body)
    launchers = [_launcher(match, body) for match in _KERNEL.finditer(body)]
    return f'#include "device.h"\n{body}\n' + "\n".join(launchers)


def _launcher(kernel: re.Match[str], body: str) -> str:
    name, parameters = kernel.groups()
    types = [p.replace("__restrict__", "").strip().rsplit(" ", 1)[0] for p in parameters.split(",") if p.strip()]
    end = body.find("\nextern", kernel.end())
    waits = bool(_WAITS.search(body[kernel.end() : end if end > 0 else len(body)]))
    values = ", ".join(f"*({kind}*)p[{i}]" for i, kind in enumerate(types))
    return (
        f'extern "C" int {name}__arguments = {len(types)};\n'
        f"static void {name}__body(void** p) {{ {name}({values}); }}\n"
        f'extern "C" void {name}__emulated(void** p, const unsigned* grid, const unsigned* block) '
        f"{{ emulation::launch({name}__body, {str(waits).lower()}, p, grid, block); }}"
    )


def compile_for_emulation(source: str, folder: Path) -> bytes:
    """What stands in an artifact for the binary: the path of a library with the kernels of ``source``."""
    text = translate(source)
    name = hashlib.sha256((text + (FOLDER / "device.h").read_text()).encode()).hexdigest()[:20]
    library = folder / f"kernels_{name}.so"
    if not library.is_file():
        code = folder / f"kernels_{name}.cpp"
        code.write_text(text)
        _compile(
            [f"-I{FOLDER}", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-w", str(code), "-o", str(library)]
        )
    return PREFIX + str(library).encode() + b"\0"


def load_emulated_device(folder: Path) -> None:
    """Put the emulated runtime and driver where TVM looks for NVIDIA's; before anything has loaded those."""
    source = str(FOLDER / "runtime.cpp")
    versions = folder / "versions.map"
    versions.write_text("libcudart.so.13 { global: *; };\n")
    runtime, driver = folder / "libcudart.so.13", folder / "libcuda.so.1"
    link = f"-Wl,-soname,{runtime.name},--version-script={versions}"
    if not runtime.is_file():
        _compile(["-O1", "-DEMULATE_RUNTIME", source, link, "-o", str(runtime)])
    if not driver.is_file():
        _compile(["-O1", source, str(runtime), f"-Wl,-soname,{driver.name}", "-ldl", "-o", str(driver)])
    for library in (runtime, driver):
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def _compile(arguments: list[str]) -> None:
    command = ["g++", "-std=c++17", "-shared", "-fPIC", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, f"{' '.join(command)}\n{finished.stderr[:4000]}"
