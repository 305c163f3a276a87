"""What a CPU level offers, derived from LLVM's name for it and for its architecture."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm.target import codegen

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.targets.toolchain import Toolchain

_CHECKED = (
    "sse4.2", "popcnt", "avx2", "fma", "avx512f", "avx512bw", "avx512vpopcntdq", "avx512vnni", "avx512vbmi", "avx512bitalg",
)  # fmt: skip
"""Extensions that the compiling machine must have to run code for a processor that has them."""


@dataclass(frozen=True)
class CpuFeatures:
    """Instruction-set facts that schedule rules choose by.

    Attributes:
        mcpu: LLVM CPU name, such as ``znver4`` or ``x86-64-v3``.
        vector_bits: width of the widest vector register worth using, in bits.
        vector_registers: number of vector registers.
        has_vpopcnt: per-lane vector popcount (AVX-512 VPOPCNTDQ).
        has_vnni: 8-bit dot product into 32-bit lanes (AVX-512 VNNI).
        has_vbmi: byte permutation across a register (AVX-512 VBMI).
        has_bitalg: popcount of every byte (AVX-512 BITALG).
        is_x86: whether x86 intrinsics may be used at all.
    """

    mcpu: str
    vector_bits: int
    vector_registers: int
    has_vpopcnt: bool
    has_vnni: bool
    has_vbmi: bool
    has_bitalg: bool
    is_x86: bool

    @property
    def accumulators(self) -> int:
        """How many accumulators of 16 words a tile keeps: they take half of the registers; operands need the rest.

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

    Raises:
        FqtError: FQT402 if LLVM does not know it, or it is of this machine's kind but has more than this machine.
    """
    if mcpu not in codegen.llvm_get_cpu_archlist(llvm_target("generic", toolchain)):
        raise FqtError(
            f"unknown {toolchain.arch} processor {mcpu!r}",
            code="FQT402",
            hint=f"for example {_EXAMPLES[toolchain.arch]}",
        )
    target = llvm_target(mcpu, toolchain)
    has = {f for f in _CHECKED if toolchain.arch == "x86_64" and codegen.target_has_features(f, target)}
    if toolchain.is_native:
        host = llvm_target(host_cpu(), toolchain)
        missing = [f for f in _CHECKED if f in has and not codegen.target_has_features(f, host)]
        if missing:
            raise FqtError(
                f"this machine ({host_cpu()}) cannot run code for {mcpu}: it lacks {', '.join(missing)}", code="FQT402"
            )
    vector_bits = 512 if "avx512f" in has else 256 if "avx2" in has else 128
    return CpuFeatures(
        mcpu=mcpu,
        vector_bits=vector_bits,
        vector_registers=32 if toolchain.arch == "aarch64" or vector_bits == 512 else 16,
        has_vpopcnt="avx512vpopcntdq" in has,
        has_vnni="avx512vnni" in has,
        has_vbmi="avx512vbmi" in has,
        has_bitalg="avx512bitalg" in has,
        is_x86=toolchain.arch == "x86_64",
    )


def llvm_target(mcpu: str, toolchain: Toolchain) -> tvm.target.Target:
    """TVM's target for processor ``mcpu``; a triple is named only where it is not this machine's."""
    machine = {} if toolchain.is_native else {"mtriple": toolchain.triple}
    return tvm.target.Target({"kind": "llvm", "mcpu": mcpu, **machine})
