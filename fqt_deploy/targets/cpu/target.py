"""The CPU target: LLVM code for this machine, or for a given level of x86-64."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import tirx

from fqt_deploy.targets.base import ScheduleRule, Target
from fqt_deploy.targets.cpu.binary_conv2d import BinaryConv2dRule
from fqt_deploy.targets.cpu.bitplane_conv2d_input_grad import BitplaneConv2dInputGradRule
from fqt_deploy.targets.cpu.bitplane_weight_grad import BitplaneWeightGradRule
from fqt_deploy.targets.cpu.elementwise import ElementwiseRule
from fqt_deploy.targets.cpu.features import cpu_features, host_cpu
from fqt_deploy.targets.cpu.fp32_convolution import Fp32ConvolutionRule, Fp32WeightGradRule
from fqt_deploy.targets.cpu.pack_channels import PackChannelsRule
from fqt_deploy.targets.cpu.pack_positions import PackPositionsRule
from fqt_deploy.targets.cpu.reduction import ReductionRule
from fqt_deploy.targets.cpu.round_products import makes_bits, round_products
from fqt_deploy.targets.cpu.table_input_grad import TableInputGradRule
from fqt_deploy.targets.cpu.table_weight_grad import TableWeightGradRule
from fqt_deploy.targets.cpu.update import UpdateRule

RULES: tuple[ScheduleRule, ...] = (
    # 1-bit products
    BinaryConv2dRule(),
    TableInputGradRule(),
    BitplaneConv2dInputGradRule(),
    TableWeightGradRule(),
    BitplaneWeightGradRule(),
    # packing
    PackChannelsRule(),
    PackPositionsRule(),
    # fp32 products
    Fp32ConvolutionRule(),
    Fp32WeightGradRule(),
    # optimizer
    UpdateRule(),
    # anything
    ElementwiseRule(),
    ReductionRule(),
)


@dataclass(frozen=True)
class CpuTarget(Target):
    """A target whose kernels that make bits round like the reference."""

    def schedule(self, function: tirx.PrimFunc) -> tirx.PrimFunc:
        """Fence products where needed, then apply the first rule that takes the kernel."""
        return super().schedule(round_products(function) if makes_bits(function) else function)


def cpu_target(mcpu: str | None) -> Target:
    """The target for processor ``mcpu``, by default that of this machine.

    Raises:
        FqtError: FQT402 for a processor that is unknown or cannot run here.
    """
    name = mcpu or host_cpu()
    return CpuTarget("cpu", tvm.target.Target({"kind": "llvm", "mcpu": name}), cpu_features(name), RULES)
