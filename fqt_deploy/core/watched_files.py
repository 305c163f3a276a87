"""The files that are read while a model is loaded and captured: what it computes may depend on them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

_watching: list[set[str]] = []


@contextlib.contextmanager
def watched_files() -> Iterator[set[str]]:
    """Collect the absolute paths of the files that this process opens for reading within the block."""
    _install()
    opened: set[str] = set()
    _watching.append(opened)
    try:
        yield opened
    finally:
        _watching.remove(opened)


def read_elsewhere(paths: Iterable[str]) -> None:
    """Count the absolute ``paths`` as opened by this process: another one did, in its place."""
    for opened in _watching:
        opened.update(paths)


@cache
def _install() -> None:
    """Install the hook, which a process can have but not lose again; it does nothing outside of a block."""
    sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or event != "open":
        return
    path, mode, flags = arguments
    written = flags & (os.O_WRONLY | os.O_RDWR) if mode is None else set(mode) & set("wax+")
    if written or not isinstance(path, (str, bytes)):
        return
    name = os.path.abspath(os.fsdecode(path))
    if not name.endswith(".pyc"):  # made from another file, by Python
        for opened in _watching:
            opened.add(name)
