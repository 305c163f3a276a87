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

_MMA = {
    # instruction -> the emulation's function, registers of D, A and B
    "m16n8k256.row.col.s32.b1.b1.s32.and.popc": ("mma_m16n8k256_and", 4, 4, 2),
    "m8n8k128.row.col.s32.b1.b1.s32.xor.popc": ("mma_m8n8k128_xor", 2, 1, 1),
    "m16n8k32.row.col.s32.u8.u8.s32": ("mma_m16n8k32_u8", 4, 4, 2),
    "m16n8k8.row.col.f32.tf32.tf32.f32": ("mma_m16n8k8_tf32", 4, 4, 2),
}
_WARPGROUP = (
    r'asm volatile\("\{ \.reg \.pred ps0; setp\.ne\.b32 ps0, %\d+, 0; '
    r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k256\.s32\.b1\.b1\.and\.popc .*?\);\n"
)
_HELPERS = (
    # body of an emitted helper function -> the emulation's
    (r'asm volatile\(\s*"cp\.async\.(wait_group|commit_group).*?\);', ";"),
    (
        r'asm volatile\(\s*"cp\.async\.c[ag]\.shared\.global[^"]*,\s*(\d+)\s*;.*?\);',
        r"emulation::copy_to_shared(__dst_mem, __src_mem, \1);",
    ),
    (r'asm volatile\("cvt\.rna\.tf32\.f32[^"]*".*?\);', "__d = emulation::rounded_to_tf32(__a);"),
    (r'asm volatile\("(wgmma\.fence|fence\.proxy\.async)[^"]*".*?\);', ";"),
    (r'asm volatile\("wgmma\.commit_group[^"]*".*?\);', "emulation::wgmma_commit();"),
    (r'asm volatile\("wgmma\.wait_group\.sync\.aligned 0;".*?\);', "emulation::wgmma_wait();"),
)
_SHARED = re.compile(r"__shared__ alignas\((\d+)\) ([\w ]+?) (\w+)\[(\d+)\];")
_SIZES = {"int": 4, "uint": 4, "float": 4, "int64_t": 8, "short": 2, "signed char": 1, "bool": 1}
_KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(([^)]*)\) \{')
_WAITS = re.compile(r"tvm_builtin_|ptx_|__syncthreads|__ballot_sync|__shfl")


def translate(source: str) -> str:
    """Emitted CUDA source as C++ with one launcher for each kernel."""
    marker = "#define ushort unsigned short\n#endif"
    body = source[source.index(marker) + len(marker) :] if marker in source else source
    for pattern, replacement in _HELPERS:
        body = re.sub(pattern, replacement, body, flags=re.DOTALL)
    body = re.sub(r'asm volatile\(\s*"mma\.sync\.aligned\.([\w.]+) [^;]*;".*?\);', _warp_product, body, flags=re.DOTALL)
    body = re.sub(_WARPGROUP, _warpgroup_product, body, flags=re.DOTALL)
    body = body.replace("__cvta_generic_to_shared(", "emulation::shared_address(")
    left = re.search(r"asm volatile.*", body)
    assert left is None, f"the emulation does not know {left.group(0) if left else ''}"
    starts = [match.start() for match in _KERNEL.finditer(body)]
    body = body[: starts[0]] + "".join(
        _with_shared_memory(body[begin:end]) for begin, end in zip(starts, [*starts[1:], len(body)], strict=True)
    )
    launchers = [_launcher(match, body) for match in _KERNEL.finditer(body)]
    return f'#include "device.h"\n{body}\n' + "\n".join(launchers)


def _warp_product(match: re.Match[str]) -> str:
    """The emulation of an instruction whose operands a helper calls ``__d0``, ``__a0`` and so on."""
    assert match[1] in _MMA, f"the emulation does not know mma.{match[1]}"
    function, results, left, right = _MMA[match[1]]
    kind = "float" if ".f32." in match[1] else "uint32_t"
    given = "".join(
        f"{of} {side}_[] = {{{', '.join(f'__{side}{i}' for i in range(count))}}}; "
        for of, side, count in (("uint32_t", "a", left), ("uint32_t", "b", right), (kind, "c", results))
    )
    out = "".join(f" __d{i} = d_[{i}];" for i in range(results))
    return f"{given}{kind} d_[{results}]; emulation::{function}(d_, a_, b_, c_);{out}"


def _warpgroup_product(match: re.Match[str]) -> str:
    columns = int(match[1])
    registers = ", ".join(f"&__d{i}" for i in range(columns // 2))
    return f"uint32_t* d_[] = {{{registers}}}; emulation::wgmma_b1(d_, {columns}, __a_desc, __b_desc);\n"


def _with_shared_memory(kernel: str) -> str:
    """The source of one kernel with its shared arrays in the emulated shared memory, one after the other."""
    used = 0

    def place(match: re.Match[str]) -> str:
        nonlocal used
        alignment, kind, name, length = int(match[1]), match[2], match[3], int(match[4])
        begin = -(-used // alignment) * alignment
        used = begin + _SIZES[kind] * length
        return (
            f'static_assert({used} <= emulation::kShared, "shared memory of a block");'
            f" auto& {name} = *reinterpret_cast<{kind} (*)[{length}]>(emulation::arena + {begin});"
        )

    kernel = _SHARED.sub(place, kernel)
    assert "__shared__" not in kernel, "the emulation does not know an array in shared memory"
    return kernel


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
    """The stand-in of the binary in an artifact: the path of a library with the kernels of ``source``."""
    text = translate(source)
    name = hashlib.sha256((text + (FOLDER / "device.h").read_text()).encode()).hexdigest()[:20]
    library = folder / f"kernels_{name}.so"
    if not library.is_file():
        code = folder / f"kernels_{name}.cpp"
        code.write_text(text)
        _compile(  # -Og: a file with the kernels of all ops compiles in half of the time of -O1
            [f"-I{FOLDER}", "-Og", "-ffp-contract=off", "-fno-strict-aliasing", "-w", str(code), "-o", str(library)]
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
