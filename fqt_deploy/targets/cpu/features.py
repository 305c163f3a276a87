"""The features of a CPU level, derived from LLVM's name for it and for its architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm.target import codegen

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.runtime.processor import missing_extensions
from fqt_deploy.targets.toolchain import Toolchain

WITHOUT_SLP = "-vectorize-slp:bool=false"
"""LLVM's option to leave straight-line code as it is. Its vectorizer of that (22) goes wrong where it gathers a loop of
few iterations: ``amin`` over rows of 23 took bits of other numbers for one of them. Schedules name their vectors."""

_EXTENSIONS: dict[str, dict[str, str]] = {
    "x86_64": {
        "ssse3": "ssse3",
        "sse4.1": "sse4_1",
        "sse4.2": "sse4_2",
        "popcnt": "popcnt",
        "lzcnt": "abm",
        "movbe": "movbe",
        "bmi": "bmi1",
        "bmi2": "bmi2",
        "f16c": "f16c",
        "fma": "fma",
        "avx": "avx",
        "avx2": "avx2",
        "gfni": "gfni",
        "vaes": "vaes",
        "vpclmulqdq": "vpclmulqdq",
        "avxvnni": "avx_vnni",
        "avx512f": "avx512f",
        "avx512bw": "avx512bw",
        "avx512cd": "avx512cd",
        "avx512dq": "avx512dq",
        "avx512vl": "avx512vl",
        "avx512ifma": "avx512ifma",
        "avx512vbmi": "avx512vbmi",
        "avx512vbmi2": "avx512_vbmi2",
        "avx512vnni": "avx512_vnni",
        "avx512bitalg": "avx512_bitalg",
        "avx512vpopcntdq": "avx512_vpopcntdq",
        "avx512bf16": "avx512_bf16",
        "avx512fp16": "avx512_fp16",
        "avx512vp2intersect": "avx512_vp2intersect",
        "amx-tile": "amx_tile",
        "amx-int8": "amx_int8",
        "amx-bf16": "amx_bf16",
    },
    "aarch64": {
        "lse": "atomics",
        "rdm": "asimdrdm",
        "fullfp16": "asimdhp",
        "dotprod": "asimddp",
        "i8mm": "i8mm",
        "bf16": "bf16",
        "sve": "sve",
        "sve2": "sve2",
    },
}
"""Extensions that a machine must have to run code for a processor that has them: LLVM's name -> /proc/cpuinfo's."""


@dataclass(frozen=True)
class CpuFeatures:
    """Instruction-set facts that schedule rules choose by.

    Attributes:
        mcpu: LLVM CPU name, such as ``znver4`` or ``x86-64-v3``.
        vector_bits: width of the widest vector register worth using, in bits.
        vector_registers: number of vector registers.
        has_vpopcnt: per-lane vector popcount (AVX-512 VPOPCNTDQ).
        has_vnni: 8-bit dot product into 32-bit lanes (AVX-512 VNNI).
        has_dot_product: the same in narrower registers (AVX-VNNI of 256 bits, ARM's ``udot``).
        has_vbmi: byte permutation across a register (AVX-512 VBMI).
        has_bitalg: popcount of every byte (AVX-512 BITALG).
        has_amx: tile registers and products of bytes in them (AMX-INT8).
        has_byte_shuffle: bytes looked up in a table of sixteen (SSSE3 ``pshufb``, NEON ``tbl``).
        is_x86: whether x86 intrinsics may be used at all.
        requires: extensions without which the code does not run, as /proc/cpuinfo names them.
    """

    mcpu: str
    vector_bits: int
    vector_registers: int
    has_vpopcnt: bool
    has_vnni: bool
    has_dot_product: bool
    has_vbmi: bool
    has_bitalg: bool
    has_amx: bool
    has_byte_shuffle: bool
    is_x86: bool
    requires: tuple[str, ...]

    @property
    def accumulators(self) -> int:
        """Number of accumulators of 16 words a tile keeps: they take half of the registers; operands need the rest.

        With 512-bit vectors these are 16, which also hide the latency of an addition.
        """
        return self.vector_registers * self.vector_bits // 512 // 2


def host_cpu() -> str:
    """LLVM's name of the processor of this machine."""
    return str(codegen.llvm_get_system_cpu())


_EXAMPLES = {
    "x86_64": "x86-64-v2, x86-64-v3, x86-64-v4, znver4 or skylake-avx512",
    "aarch64": "generic, cortex-a53, cortex-a72 or cortex-a76",
}


def cpu_features(mcpu: str, toolchain: Toolchain) -> CpuFeatures:
    """Features of processor ``mcpu`` of the toolchain's architecture.

    Of this machine's own processor only what its operating system offers: a virtual machine may hide extensions.

    Raises:
        FqtError: FQT402 if LLVM does not know it, or it is of this machine's kind but has more than this machine.
    """
    if mcpu not in codegen.llvm_get_cpu_archlist(_named_target("generic", toolchain)):
        raise FqtError(
            f"unknown {toolchain.arch} processor {mcpu!r}",
            code="FQT402",
            hint=f"for example {_EXAMPLES[toolchain.arch]}",
        )
    extensions = _EXTENSIONS[toolchain.arch]
    target = _named_target(mcpu, toolchain)
    named = [name for name in extensions if codegen.target_has_features(name, target)]
    hidden = _missing_here(named, toolchain)
    if hidden and mcpu != host_cpu():
        raise FqtError(
            f"this machine ({host_cpu()}) cannot run code for {mcpu}: it lacks {', '.join(hidden)}", code="FQT402"
        )
    has = [name for name in named if name not in hidden]
    vector_bits = 512 if "avx512f" in has else 256 if "avx2" in has else 128
    return CpuFeatures(
        mcpu=mcpu,
        vector_bits=vector_bits,
        vector_registers=32 if toolchain.arch == "aarch64" or vector_bits == 512 else 16,
        has_vpopcnt="avx512vpopcntdq" in has,
        has_vnni="avx512vnni" in has,
        has_dot_product="avxvnni" in has or "dotprod" in has,
        has_vbmi="avx512vbmi" in has,
        has_bitalg="avx512bitalg" in has,
        has_amx="amx-tile" in has and "amx-int8" in has,
        has_byte_shuffle="ssse3" in has or toolchain.arch == "aarch64",
        is_x86=toolchain.arch == "x86_64",
        requires=tuple(extensions[name] for name in has),
    )


def llvm_target(mcpu: str, toolchain: Toolchain) -> tvm.target.Target:
    """TVM's target for processor ``mcpu``, without extensions that this machine, if it is of that kind, hides."""
    target = _named_target(mcpu, toolchain)
    named = [name for name in _EXTENSIONS[toolchain.arch] if codegen.target_has_features(name, target)]
    return _named_target(mcpu, toolchain, tuple(_missing_here(named, toolchain)))


def _missing_here(names: list[str], toolchain: Toolchain) -> list[str]:
    """The extensions among ``names`` that this machine lacks; none if it is another machine that needs them."""
    if not toolchain.is_native:
        return []
    extensions = _EXTENSIONS[toolchain.arch]
    missing = missing_extensions(toolchain.arch, " ".join(extensions[name] for name in names))
    return [name for name in names if extensions[name] in missing]


def _named_target(mcpu: str, toolchain: Toolchain, without: tuple[str, ...] = ()) -> tvm.target.Target:
    """A triple is named only where it is not this machine's."""
    options: dict[str, Any] = {} if toolchain.is_native else {"mtriple": toolchain.triple}
    if without:
        options["mattr"] = [f"-{name}" for name in without]
    return tvm.target.Target({"kind": "llvm", "mcpu": mcpu, "cl-opt": [WITHOUT_SLP], **options})
