"""Locks that die with the process that holds them: ``flock`` on files and folders.

A process that was paused keeps its locks; one that was killed, in whatever way, has none. The C interface takes the
same locks (``c_api/src/files.cc``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fqt_deploy.core.diagnostics import FqtError

PATIENCE = 2.0
"""Seconds that are waited for a lock which others hold only while they read or write a file."""

_HELD: set[str] = set()
"""Files that this process alone may write, by their real paths: see ``only_writer``."""


def try_lock(descriptor: int, *, shared: bool = False, patience: float = 0.0) -> bool:
    """Whether the open file ``descriptor`` could be locked until it is closed.

    Args:
        descriptor: the descriptor of a file or a folder.
        shared: let others share the lock; else hold it alone.
        patience: seconds to wait for those who hold it.

    Raises:
        OSError: the file system has no locks.
    """
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.01)
        else:
            return True


def is_at(descriptor: int, path: Path | str) -> bool:
    """Whether ``path`` still names the open file ``descriptor``: another one may have taken its place."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


@contextmanager
def lock_folder(folder: Path, *, shared: bool, patience: float = PATIENCE) -> Iterator[None]:
    """Within this context nobody replaces the artifact ``folder``; alone, nobody loads or trains it either.

    Raises:
        FqtError: FQT508 if another process holds it.
        OSError: the folder cannot be opened or locked.
    """
    while True:
        descriptor = os.open(folder.resolve(), os.O_RDONLY | os.O_DIRECTORY)
        try:
            if not try_lock(descriptor, shared=shared, patience=patience):
                doing = "replaced" if shared else "trained or loaded"
                raise FqtError(
                    f"{folder} is being {doing} by another process",
                    code="FQT508",
                    hint="wait until it ends, or end it" if shared else "wait until it ends, or choose another output",
                )
            if is_at(descriptor, folder.resolve()):
                yield
                return
        finally:
            os.close(descriptor)


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Within this context no other process writes the file ``path``.

    The lock is the file ``.NAME.lock`` beside it. It is removed at the end; after a kill it stays, unlocked, and the
    next writer takes it over.

    Raises:
        FqtError: FQT508 if another process writes it, or the lock cannot be made.
    """
    real = os.path.realpath(path)
    lock = lock_path(real)
    try:
        descriptor = _take(path, lock)
    except OSError as error:
        raise FqtError(f"cannot lock {lock}: {error.strerror}", code="FQT508", hint="choose another file") from None
    _HELD.add(real)
    try:
        yield
    finally:
        _HELD.discard(real)
        with contextlib.suppress(OSError):  # the folder may be gone or no longer ours to change: the lock goes anyway
            lock.unlink()
        os.close(descriptor)


def check_no_other_writer(path: Path) -> None:
    """FQT508 if another process is the ``only_writer`` of ``path``."""
    real = os.path.realpath(path)
    if real in _HELD:
        return
    try:
        descriptor = os.open(lock_path(real), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if not try_lock(descriptor, shared=True):
            raise _taken(path, descriptor)
    except OSError:
        return
    finally:
        os.close(descriptor)


def lock_path(real: str) -> Path:
    """The lock of the file whose real path is ``real``."""
    return Path(os.path.dirname(real), hidden_name(os.path.basename(real)) + "lock")


def hidden_name(name: str) -> str:
    """The beginning of the names of files that accompany ``name``; together they stay within a file system's limit."""
    return f".{os.fsdecode(os.fsencode(name)[:200])}."


def _take(path: Path, lock: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            # Who only asks whether there is a writer holds the lock for a moment.
            if not try_lock(descriptor, patience=0.2):
                raise _taken(path, descriptor)
            if is_at(descriptor, lock):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _taken(path: Path, descriptor: int) -> FqtError:
    owner = os.pread(descriptor, 20, 0).decode(errors="replace")
    who = f"process {owner}" if owner.isdecimal() else "another process"
    return FqtError(
        f"{who} is training and writes {path}",
        code="FQT508",
        hint="wait until it ends, or end it (a paused one too); or choose another checkpoint",
    )
