"""One compilation at a time: capture stands in for functions of PyTorch that all threads call."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., object])

_lock = threading.RLock()
_here = threading.local()


def is_compiling() -> bool:
    """Whether this thread is in a function that was wrapped."""
    return getattr(_here, "depth", 0) > 0


def _unlock() -> None:
    """Begin with a lock of its own: a process that was forked has not the thread that held the other one."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_unlock)


def one_at_a_time(function: _Function) -> _Function:
    """The function, which waits while another thread is in one that was wrapped the same way."""

    @functools.wraps(function)
    def alone(*arguments: object, **options: object) -> object:
        with _lock:
            _here.depth = getattr(_here, "depth", 0) + 1
            try:
                return function(*arguments, **options)
            finally:
                _here.depth -= 1

    return cast("_Function", alone)
