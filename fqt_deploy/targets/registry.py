"""All targets by name, with the options that each has; listing them imports none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import TargetOptions
from fqt_deploy.targets.cpu.options import CpuOptions
from fqt_deploy.targets.cuda.options import CudaOptions

if TYPE_CHECKING:
    from fqt_deploy.targets.base import Target


@dataclass(frozen=True)
class TargetEntry:
    """The entry of a target that is not made yet.

    Attributes:
        options: the class of its options; its fields are the flags and settings that the target has.
        make: makes the target from an instance of it; imports the target first.
    """

    options: type[TargetOptions]
    make: Callable[[Any], Target]


def _cpu(options: CpuOptions) -> Target:
    from fqt_deploy.targets.cpu.target import cpu_target

    return cpu_target(options.mcpu)


def _aarch64(options: CpuOptions) -> Target:
    from fqt_deploy.targets.cpu.target import aarch64_target

    return aarch64_target(options.mcpu)


def _rpi5(options: CpuOptions) -> Target:
    from fqt_deploy.targets.cpu.target import rpi5_target

    return rpi5_target(options.mcpu)


def _cuda(options: CudaOptions) -> Target:
    from fqt_deploy.targets.cuda.target import cuda_target

    return cuda_target(options.arch, tf32=options.tf32)


TARGETS: dict[str, TargetEntry] = {
    "cpu": TargetEntry(CpuOptions, _cpu),
    "aarch64": TargetEntry(CpuOptions, _aarch64),
    "rpi5": TargetEntry(CpuOptions, _rpi5),
    "cuda": TargetEntry(CudaOptions, _cuda),
}
"""Every target by the name that ``--target`` takes."""


def target_entry(name: object) -> TargetEntry:
    """The entry of the target called ``name``; FQT401 with the names that there are if there is none."""
    if not isinstance(name, str) or name not in TARGETS:
        raise FqtError(f"unknown target {name!r}", code="FQT401", hint=f"targets: {', '.join(TARGETS)}")
    return TARGETS[name]


def make_target(name: str, options: TargetOptions | None = None) -> Target:
    """The target called ``name``.

    Args:
        name: a key of ``TARGETS``.
        options: the options chosen for it, of the target's own class; None for its defaults.

    Raises:
        FqtError: FQT401 for an unknown target, FQT202 for another target's options, FQT402 for an unknown processor.
    """
    entry = target_entry(name)
    if options is not None and type(options) is not entry.options:
        wanted, given = entry.options.__name__, type(options).__name__
        raise FqtError(f"target {name} takes {wanted}, not {given}", code="FQT202")
    return entry.make(options or entry.options())
