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


TARGETS: dict[str, Callable[[str | None], "Target"]] = {
    "cpu": _cpu,
    "aarch64": _aarch64,
    "rpi5": _rpi5,
}
"""Name -> factory of the target for a processor (None: the target's own choice)."""


def make_target(name: str, mcpu: str | None = None) -> Target:
    """The target called ``name``; FQT401 for an unknown one."""
    if name not in TARGETS:
        raise FqtError(f"unknown target {name!r}", code="FQT401", hint=f"targets: {', '.join(TARGETS)}")
    return TARGETS[name](mcpu)
