"""The CUDA target: kernels in TensorIR, compiled by nvcc into one binary for several architectures."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import tirx

from fqt_deploy.targets.base import ScheduleRule, Target
from fqt_deploy.targets.cuda.ballot_packing import BallotPackingRule
from fqt_deploy.targets.cuda.binary_conv2d import BinaryConv2dRule
from fqt_deploy.targets.cuda.bitplane_conv2d_input_grad import BitplaneConv2dInputGradRule
from fqt_deploy.targets.cuda.bitplane_weight_grad import BitplaneWeightGradRule
from fqt_deploy.targets.cuda.column_packing import ColumnPackingRule, WeightPackingRule
from fqt_deploy.targets.cuda.device_intrinsics import with_device_intrinsics
from fqt_deploy.targets.cuda.elementwise import AnyRule
from fqt_deploy.targets.cuda.features import cuda_features
from fqt_deploy.targets.cuda.fp32_product import Fp32ProductRule
from fqt_deploy.targets.cuda.pack_positions import PackPositionsRule
from fqt_deploy.targets.cuda.single_block import SingleBlockRule

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
    AnyRule(),
)


@dataclass(frozen=True)
class CudaTarget(Target):
    """A target whose kernels call the device's own functions."""

    def schedule(self, function: tirx.PrimFunc) -> tirx.PrimFunc:
        """Apply the first rule that takes the kernel."""
        return with_device_intrinsics(super().schedule(function))


def cuda_target(architectures: str | None) -> CudaTarget:
    """The target for a list of architectures, such as ``sm_80,sm_90a``.

    Raises:
        FqtError: FQT402 for an unknown architecture.
    """
    features = cuda_features(architectures)
    device = {"kind": "cuda", "arch": features.architectures[0], "max_threads_per_block": 1024, "thread_warp_size": 32}
    return CudaTarget("cuda", tvm.target.Target(device, host={"kind": "llvm"}), features, RULES)
