"""The options of the CPU targets."""

from __future__ import annotations

from dataclasses import dataclass

from fqt_deploy.core.option import TARGET, option
from fqt_deploy.core.options import TargetOptions


@dataclass(frozen=True, kw_only=True)
class CpuOptions(TargetOptions):
    """The options that a person may choose for a CPU."""

    mcpu: str | None = option(
        None,
        "Compile for this processor, by LLVM's name: x86-64-v3, znver4, cortex-a72, ...",
        section=TARGET,
        metavar="NAME",
        default_text="the target's own; for cpu, this machine's",
    )
