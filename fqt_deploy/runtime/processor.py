"""What this machine's processor offers, as the kernel tells it; code for a larger one would end the process."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

_KEYS = {"x86_64": "flags", "aarch64": "Features"}
"""Line of ``CPUINFO`` that lists extensions, by architecture."""


def missing_extensions(arch: str, required: str) -> list[str]:
    """Those of the ``required`` extensions, separated by spaces, that this machine lacks.

    Args:
        arch: as ``uname -m`` says it.
        required: names as in ``CPUINFO``.

    Returns:
        Names in order; none if the kernel does not tell, as under an emulator.
    """
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == _KEYS.get(arch):
            return [name for name in required.split() if name not in value.split()]
    return []
