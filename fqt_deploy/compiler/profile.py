"""The profile of an artifact that was just compiled, beside PyTorch's times for the model it was compiled from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.profiling.profile_artifact import profile_artifact
from fqt_deploy.profiling.step_profile import StepProfile
from fqt_deploy.profiling.torch_times import torch_times
from fqt_deploy.targets.registry import make_target

_MODES = ("fp32", "bf16")


def check_can_profile(options: CompileOptions) -> None:
    """FQT402 if the target's code does not run on this machine, an emulator's times mean nothing; FQT202 for a GPU."""
    target = make_target(options.target, options.target_options)
    if not target.toolchain.is_native:
        raise FqtError(
            f"code for {target.toolchain.arch} cannot be timed on this machine",
            code="FQT402",
            hint="compile without --profile, and run fqt-profile DIR --save FILE.json on the device",
        )
    if target.name != "cpu":
        raise FqtError(
            f"--profile times steps for the CPU, not for {target.name}",
            code="FQT202",
            hint="compile without --profile, and run fqt-profile DIR on the machine with the GPU",
        )


def compare_with_torch(source: ModelSource, output: Path) -> StepProfile:
    """Measure the step in ``output``, then PyTorch's in fp32 and bf16.

    Args:
        source: the model that was compiled; its weights are changed.
        output: its artifact.
    """
    profile = profile_artifact(output)
    return replace(profile, torch=torch_times(source, _MODES))
