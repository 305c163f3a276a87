"""The CPU targets: LLVM code for this machine, for another processor of its kind, or for another kind of machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tvm import tirx

from fqt_deploy.targets.base import ScheduleRule, Target
from fqt_deploy.targets.cpu.features import cpu_features, host_cpu, llvm_target
from fqt_deploy.targets.cpu.fp32.fp32_attention import Fp32AttentionRule
from fqt_deploy.targets.cpu.fp32.fp32_attention_backward import Fp32AttentionBackwardRule
from fqt_deploy.targets.cpu.fp32.fp32_attention_mask_gradient import Fp32AttentionMaskGradientRule
from fqt_deploy.targets.cpu.fp32.fp32_convolution import Fp32ConvolutionRule
from fqt_deploy.targets.cpu.fp32.fp32_depthwise import Fp32DepthwiseRule
from fqt_deploy.targets.cpu.fp32.fp32_depthwise_weight_grad import Fp32DepthwiseWeightGradRule
from fqt_deploy.targets.cpu.fp32.fp32_few_taps_weight_grad import Fp32FewTapsWeightGradRule
from fqt_deploy.targets.cpu.fp32.fp32_input_grad import Fp32InputGradRule
from fqt_deploy.targets.cpu.fp32.fp32_matmul import Fp32MatmulRule
from fqt_deploy.targets.cpu.fp32.fp32_weight_grad import Fp32WeightGradRule
from fqt_deploy.targets.cpu.generic.coded_update import CodedUpdateRule
from fqt_deploy.targets.cpu.generic.elementwise import ElementwiseRule
from fqt_deploy.targets.cpu.generic.in_order import InOrderRule
from fqt_deploy.targets.cpu.generic.nan_extremes import nan_extremes
from fqt_deploy.targets.cpu.generic.reduction import ReductionRule
from fqt_deploy.targets.cpu.generic.round_products import round_products
from fqt_deploy.targets.cpu.generic.select_sampled import SelectSampledRule
from fqt_deploy.targets.cpu.generic.transposition import TranspositionRule
from fqt_deploy.targets.cpu.generic.update import UpdateRule
from fqt_deploy.targets.cpu.lowering import register
from fqt_deploy.targets.cpu.packing.pack_channels import PackChannelsRule
from fqt_deploy.targets.cpu.packing.pack_positions import PackPositionsRule
from fqt_deploy.targets.cpu.packing.pack_weight import PackWeightRule
from fqt_deploy.targets.cpu.packing.quantize_pack_channels import QuantizePackChannelsRule
from fqt_deploy.targets.cpu.packing.transpose_packed_weight import TransposePackedWeightRule
from fqt_deploy.targets.cpu.products.bit_product_rule import BitProductRule
from fqt_deploy.targets.toolchain import TOOLCHAINS, Toolchain, native_toolchain
from fqt_deploy.targets.tuning_log import read_tiles, tiles_of

TUNED_TILES = Path(__file__).with_name("tuned_tiles.jsonl")
"""The tuning log of the examples' kernels, measured on the processors named there."""

RULES: tuple[ScheduleRule, ...] = (
    # 1-bit products
    BitProductRule(),
    # packing
    PackChannelsRule(),
    PackPositionsRule(),
    PackWeightRule(),
    QuantizePackChannelsRule(),
    TransposePackedWeightRule(),
    # selection
    SelectSampledRule(),
    # fp32 products
    Fp32AttentionRule(),
    Fp32AttentionBackwardRule(),
    Fp32AttentionMaskGradientRule(),
    Fp32MatmulRule(),
    Fp32ConvolutionRule(),
    Fp32InputGradRule(),
    Fp32FewTapsWeightGradRule(),
    Fp32WeightGradRule(),
    Fp32DepthwiseRule(),
    Fp32DepthwiseWeightGradRule(),
    # optimizer
    CodedUpdateRule(),
    UpdateRule(),
    # anything
    InOrderRule(),
    TranspositionRule(),
    ElementwiseRule(),
    ReductionRule(),
)


@dataclass(frozen=True)
class CpuTarget(Target):
    """A target whose kernels round, and pass NaN on, like PyTorch."""

    separate_objects: ClassVar[bool] = True
    takes_weight_levels: ClassVar[bool] = True
    lowering: ClassVar[str] = register()

    def schedule(self, function: tirx.PrimFunc) -> tirx.PrimFunc:
        """Compute floats as PyTorch does, then apply the first rule that takes the kernel."""
        return super().schedule(nan_extremes(round_products(function)))


def cpu_target(mcpu: str | None) -> Target:
    """The target for processor ``mcpu`` of this machine's kind, by default for this machine.

    Raises:
        FqtError: FQT402 for a processor that is unknown or cannot run here.
    """
    return _target("cpu", mcpu or host_cpu(), native_toolchain())


def aarch64_target(mcpu: str | None) -> Target:
    """The target for 64-bit ARM: any such processor, or ``mcpu``; FQT402 for an unknown one."""
    return _target("aarch64", mcpu or "generic", TOOLCHAINS["aarch64"])


def rpi5_target(mcpu: str | None) -> Target:
    """The target for the Raspberry Pi 5, a Cortex-A76; FQT402 for an unknown processor."""
    return _target("rpi5", mcpu or "cortex-a76", TOOLCHAINS["aarch64"])


def _target(name: str, mcpu: str, toolchain: Toolchain) -> Target:
    features = cpu_features(mcpu, toolchain)
    tuned = tiles_of(mcpu, read_tiles(TUNED_TILES))
    return CpuTarget(name, llvm_target(mcpu, toolchain), features, RULES, toolchain, tuned)
