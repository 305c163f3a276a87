"""All targets by name; listing them imports none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fqt_deploy.core.diagnostics import FqtError

if TYPE_CHECKING:
    from fqt_deploy.targets.base import Target


def _cpu(mcpu: str | None) -> Target:
    from fqt_deploy.targets.cpu.target import cpu_target

    return cpu_target(mcpu)


def _cuda(architectures: str | None) -> Target:
    from fqt_deploy.targets.cuda.target import cuda_target

    return cuda_target(architectures)


TARGETS: dict[str, Callable[[str | None], "Target"]] = {
    "cpu": _cpu,
    "cuda": _cuda,
}
"""Name -> factory of the target for a processor, or for a list of GPU architectures; None: the default."""

_PROCESSOR_OPTION = {"cpu": "mcpu", "cuda": "arch"}
"""Name -> the option that names the processor."""


def make_target(name: str, mcpu: str | None = None, arch: str | None = None) -> Target:
    """The target called ``name``.

    Args:
        name: a key of ``TARGETS``.
        mcpu: processor, for CPUs.
        arch: architectures separated by commas, for GPUs.

    Raises:
        FqtError: FQT401 for an unknown target, FQT202 for the other kind's option.
    """
    if name not in TARGETS:
        raise FqtError(f"unknown target {name!r}", code="FQT401", hint=f"targets: {', '.join(TARGETS)}")
    given = {"mcpu": mcpu, "arch": arch}
    processor = given.pop(_PROCESSOR_OPTION[name])
    for option, value in given.items():
        if value is not None:
            raise FqtError(
                f"{option} is {value!r}, but target {name} has no {option}",
                code="FQT202",
                hint=f"use {_PROCESSOR_OPTION[name]}",
            )
    return TARGETS[name](processor)
