"""The CUDA target: kernels in TensorIR, compiled by nvcc into one binary for several architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.targets.base import ScheduleRule, Target
from fqt_deploy.targets.cuda import lowering
from fqt_deploy.targets.cuda.any_kernel import AnyRule
from fqt_deploy.targets.cuda.ballot_packing import BallotPackingRule
from fqt_deploy.targets.cuda.binary_conv2d import BinaryConv2dRule
from fqt_deploy.targets.cuda.bitplane_conv2d_input_grad import BitplaneConv2dInputGradRule
from fqt_deploy.targets.cuda.bitplane_weight_grad import BitplaneWeightGradRule
from fqt_deploy.targets.cuda.column_packing import ColumnPackingRule, WeightPackingRule
from fqt_deploy.targets.cuda.device_intrinsics import with_device_intrinsics
from fqt_deploy.targets.cuda.features import BEFORE_TF32, CudaFeatures, cuda_features
from fqt_deploy.targets.cuda.fp32_product import Fp32ProductRule
from fqt_deploy.targets.cuda.in_order import InOrderRule
from fqt_deploy.targets.cuda.nan_extremes import nan_extremes, with_definitions
from fqt_deploy.targets.cuda.pack_positions import PackPositionsRule
from fqt_deploy.targets.cuda.single_block import SingleBlockRule
from fqt_deploy.targets.cuda.toolchain import (
    CUDA_RUNTIME_LIBRARY,
    FATBIN_MAGIC,
    INSTALL,
    compile_cuda,
    enable_cuda_runtime,
)
from fqt_deploy.targets.cuda.whole_formulas import with_whole_formulas

RULES: tuple[ScheduleRule, ...] = (
    # 1-bit products
    BinaryConv2dRule(),
    BitplaneConv2dInputGradRule(),
    BitplaneWeightGradRule(),
    # packing
    BallotPackingRule(),
    ColumnPackingRule(),
    WeightPackingRule(),
    PackPositionsRule(),
    # fp32 products
    Fp32ProductRule(),
    # chains of small stages
    SingleBlockRule(),
    # anything
    InOrderRule(),
    AnyRule(),
)


SourceCompiler = Callable[[str, CudaFeatures], bytes]
"""A function from CUDA source to a binary that the driver loads."""


@dataclass(frozen=True)
class CudaTarget(Target):
    """A target whose kernels are compiled by nvcc.

    Attributes:
        compile_source: nvcc, or a stand-in for tests.
    """

    compile_source: SourceCompiler = compile_cuda

    def schedule(self, function: tirx.PrimFunc) -> tirx.PrimFunc:
        """Apply the first rule that takes the kernel."""
        return nan_extremes(with_device_intrinsics(super().schedule(with_whole_formulas(function))))

    def compile(self, module: tvm.IRModule, relax_pipeline: Any) -> Any:
        """Host code by LLVM, device code by nvcc; FQT301 or FQT404 where that fails."""
        enable_cuda_runtime()
        pipeline = lowering.register()
        failures: list[FqtError] = []

        def callback(source: str) -> bytes:
            try:
                return self.compile_source(with_definitions(source), self.features)
            except FqtError as error:  # would lose its type on the way through C++
                failures.append(error)
                raise RuntimeError(str(error)) from None

        tvm_ffi.register_global_func("tvm_callback_cuda_compile", callback, override=True)
        try:
            with self.tvm_target:
                return tvm.compile(module, self.tvm_target, relax_pipeline=relax_pipeline, tir_pipeline=pipeline)
        except RuntimeError:
            if failures:
                raise failures[0] from None
            raise

    def with_tf32(self) -> CudaTarget:
        """The same, rounding operands of fp32 products to TF32; FQT202 if an architecture is older than that."""
        old = [name for name in self.features.architectures if name in BEFORE_TF32]
        if old:
            raise FqtError(f"{old[0]} has no TF32", code="FQT202", hint="leave out --tf32, or the architecture")
        return replace(self, features=replace(self.features, tf32=True))

    def variant(self) -> Mapping[str, str]:
        """Whether fp32 products run in TF32, and whether there is no PTX that later devices could translate."""
        entries = {"fp32_products": "tf32"} if self.features.tf32 else {}
        return entries if self.features.forward_compatible else {**entries, "ptx": "none"}

    def device(self) -> Any:
        """The first GPU of this machine; FQT403 if there is none."""
        enable_cuda_runtime()
        device = tvm.cuda(0)
        if not device.exist:
            raise FqtError(
                "there is no CUDA device, or no driver for it",
                code="FQT403",
                hint="compiling needs none; leave out --verify numerics",
            )
        return device

    def companions(self) -> Mapping[str, Path]:
        """The files that an artifact brings along for a GPU: TVM's runtime library for GPUs."""
        return {f"lib/{CUDA_RUNTIME_LIBRARY}": Path(str(tvm.__file__)).parent / "lib" / CUDA_RUNTIME_LIBRARY}

    def check_library(self, library: Path) -> None:
        """FQT404 if ``library`` holds no binary for the device: TVM exports source alone where it lacks a compiler."""
        if self.compile_source is compile_cuda and FATBIN_MAGIC not in library.read_bytes():
            raise FqtError("the compiled library holds no device code", code="FQT404", hint=INSTALL)


def cuda_target(architectures: str | None, *, tf32: bool = False) -> CudaTarget:
    """The target for a list of architectures, such as ``sm_80,sm_90a``; with ``tf32``, for fp32 products in TF32.

    Raises:
        FqtError: FQT202 for TF32 on an architecture without it, FQT402 for an unknown one.
    """
    features = cuda_features(architectures)
    device = {"kind": "cuda", "arch": features.architectures[0], "max_threads_per_block": 1024, "thread_warp_size": 32}
    target = CudaTarget("cuda", tvm.target.Target(device, host={"kind": "llvm"}), features, RULES)
    return target.with_tf32() if tf32 else target
