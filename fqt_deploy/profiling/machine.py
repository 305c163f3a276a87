"""The machine that a profile was measured on, and how busy others kept it meanwhile."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

_NAMES = ("model name", "Model", "Hardware")
"""Keys of /proc/cpuinfo that name a processor or a board, on x86 and on ARM."""


@dataclass(frozen=True)
class Machine:
    """A machine.

    Attributes:
        processor: its name.
        arch: the architecture, as ``uname -m`` says it.
        cores: number of cores that the process may use.
        threads: number of threads that kernels use.
    """

    processor: str
    arch: str
    cores: int
    threads: int


def this_machine(threads: int) -> Machine:
    """The machine of this process, whose kernels use so many threads."""
    return Machine(_processor(), platform.machine(), len(os.sched_getaffinity(0)), threads)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return next((told[name] for name in _NAMES if name in told), platform.processor() or platform.machine())


class OtherWork:
    """Counts the cores that other processes use while this object's context lasts.

    Attributes:
        cores: their mean number; None where the system does not tell.
    """

    cores: float | None = None

    def __enter__(self) -> OtherWork:
        self._begin, self._spent = time.perf_counter(), _seconds_of_others()
        return self

    def __exit__(self, *_: object) -> None:
        spent = _seconds_of_others()
        if spent is not None and self._spent is not None:
            self.cores = max(0.0, (spent - self._spent) / (time.perf_counter() - self._begin))


def _seconds_of_others() -> float | None:
    """Core seconds that this machine has spent so far, without those of this process."""
    try:
        user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK") - time.process_time()
