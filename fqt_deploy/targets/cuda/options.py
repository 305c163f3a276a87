"""The options of the CUDA target."""

from __future__ import annotations

from dataclasses import dataclass

from fqt_deploy.core.option import TARGET, option
from fqt_deploy.core.options import TargetOptions
from fqt_deploy.targets.cuda.features import DEFAULT


@dataclass(frozen=True, kw_only=True)
class CudaOptions(TargetOptions):
    """The options that a person may choose for NVIDIA GPUs."""

    arch: str | None = option(
        None,
        "Compile for these architectures, with commas between them.",
        section=TARGET,
        metavar="LIST",
        default_text=",".join(DEFAULT),
    )
    tf32: bool = option(False, "Round the operands of fp32 products to TF32, for speed.", section=TARGET)
