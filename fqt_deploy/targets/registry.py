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


def _aarch64(mcpu: str | None) -> Target:
    from fqt_deploy.targets.cpu.target import aarch64_target

    return aarch64_target(mcpu)


def _rpi5(mcpu: str | None) -> Target:
    from fqt_deploy.targets.cpu.target import rpi5_target

    return rpi5_target(mcpu)


def _cuda(architectures: str | None) -> Target:
    from fqt_deploy.targets.cuda.target import cuda_target

    return cuda_target(architectures)


TARGETS: dict[str, Callable[[str | None], Target]] = {
    "cpu": _cpu,
    "aarch64": _aarch64,
    "rpi5": _rpi5,
    "cuda": _cuda,
}
"""Name -> factory of the target for a processor, or for a list of GPU architectures; None: the target's own choice."""

_GPUS = ("cuda",)
"""Targets whose processor ``arch`` names, not ``mcpu``."""


def make_target(name: str, mcpu: str | None = None, arch: str | None = None, *, tf32: bool = False) -> Target:
    """The target called ``name``.

    Args:
        name: a key of ``TARGETS``.
        mcpu: processor, for CPUs.
        arch: architectures separated by commas, for GPUs.
        tf32: whether fp32 products may round their operands to TF32, for GPUs.

    Raises:
        FqtError: FQT401 for an unknown target, FQT202 for the other kind's option.
    """
    if name not in TARGETS:
        raise FqtError(f"unknown target {name!r}", code="FQT401", hint=f"targets: {', '.join(TARGETS)}")
    own, other = ("arch", "mcpu") if name in _GPUS else ("mcpu", "arch")
    given = {"mcpu": mcpu, "arch": arch}
    if given[other] is not None:
        raise FqtError(
            f"{other} is {given[other]!r}, but target {name} has no {other}", code="FQT202", hint=f"use {own}"
        )
    target = TARGETS[name](given[own])
    return target.with_tf32() if tf32 else target
