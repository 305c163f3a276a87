"""Samples that are read and decoded by several threads at once, where there are cores to spare."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

MOST = 8
"""Number of threads that decode; more wait for the disk, or take the step's cores."""
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def decoding_threads() -> int:
    """The number of threads: half of the cores, the step computes on all."""
    return max(1, min(MOST, len(os.sched_getaffinity(0)) // 2))


def in_threads(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """``function`` of each item, in their order; the first error is raised."""
    threads = min(decoding_threads(), len(items))
    if threads < 2:
        return [function(item) for item in items]
    parts = [items[len(items) * i // threads : len(items) * (i + 1) // threads] for i in range(threads)]
    return [result for part in _pool(os.getpid()).map(functools.partial(_each, function), parts) for result in part]


def _each(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    return [function(item) for item in items]


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of a process: a forked one has none of its parent's."""
    return ThreadPoolExecutor(decoding_threads(), thread_name_prefix=f"fqt-decoder-{process}")
