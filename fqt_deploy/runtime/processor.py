"""The features of this machine's processor, as the kernel tells them; code for a larger one would end the process."""

from __future__ import annotations

import ctypes
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

TILES = "amx_tile"
_REQUEST_TILES = (158, 0x1023, 18)
"""The system call arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), by number: the C library has no name for it."""
_KEYS = {"x86_64": "flags", "aarch64": "Features"}
"""Line of ``CPUINFO`` that lists extensions, by architecture."""


def missing_extensions(arch: str, required: str) -> list[str]:
    """The ``required`` extensions, separated by spaces, that this machine lacks.

    Args:
        arch: the architecture, as ``uname -m`` says it.
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
            offered = set(value.split())
            if TILES in offered and TILES in required.split() and not _grants_tiles():
                offered.remove(TILES)
            return [name for name in required.split() if name not in offered]
    return []


def _grants_tiles() -> bool:
    """Whether Linux lets this process use the tile registers: it may refuse, and kernels that ask could not go on."""
    return bool(ctypes.CDLL(None).syscall(*_REQUEST_TILES) == 0)
