"""Which devices can run an artifact that was compiled for a list of GPU architectures."""

from __future__ import annotations

import re
from collections.abc import Sequence


def can_run(architectures: Sequence[str], capability: tuple[int, int], *, ptx: bool = True) -> bool:
    """Whether a device of compute capability ``capability`` runs code for ``architectures``, oldest first.

    A binary runs on its own generation from its own minor version on, with the suffix ``a`` on that version alone. The
    artifact also holds PTX of the newest architecture, which the driver of a newer device translates, unless ``ptx``
    says that it does not.
    """
    versions = [parse(name) for name in architectures]
    newest = max((major, minor) for major, minor, _ in versions)
    return (ptx and capability >= newest) or any(_binary_runs(version, capability) for version in versions)


def parse(name: str) -> tuple[int, int, bool]:
    """Major and minor version of ``sm_90a``, and whether it is bound to that version."""
    match = re.fullmatch(r"sm_(\d+)(\d)(a?)", name)
    assert match is not None, name
    return int(match.group(1)), int(match.group(2)), bool(match.group(3))


def _binary_runs(version: tuple[int, int, bool], capability: tuple[int, int]) -> bool:
    major, minor, exact = version
    return capability == (major, minor) or (not exact and capability[0] == major and capability[1] >= minor)
