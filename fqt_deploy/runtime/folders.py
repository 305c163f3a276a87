"""Replacing a folder so that a crash leaves the old one or the new one, whole."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fqt_deploy.runtime.files import PART, current_umask, parts, sync_folder, write_synced
from fqt_deploy.runtime.locks import hidden_name, lock_folder, try_lock

_NEW, _OLD = "new", "old"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""The arguments of Linux's renameat2: the current folder, and the exchange of two names."""


def replace_folder(folder: Path, files: Mapping[str, bytes], *, keep: Callable[[Path], bool]) -> None:
    """Put a folder with ``files`` in the place of ``folder``; both names change hands at once.

    The new folder is first written into a hidden one beside it, which is locked for as long as its writer lives: what a
    killed writer left behind is removed by the next one.

    Args:
        folder: the folder to write; no symbolic link. Its parent exists.
        files: contents by path inside the folder.
        keep: which files and folders of the old folder move along.

    Raises:
        FqtError: FQT508 if another process uses the old folder.
        OSError: it cannot be written; the old folder is as it was.
    """
    sweep_folders(folder, keep=keep)
    with _workspace(folder) as workspace, contextlib.ExitStack() as stack:
        new, old = workspace / _NEW, workspace / _OLD
        new.mkdir()
        new.chmod(0o777 & ~current_umask())
        for name, content in files.items():
            (new / name).parent.mkdir(exist_ok=True, parents=True)
            write_synced(new / name, content)
        if not folder.exists():
            sync_folder(new)
            new.rename(folder)
        else:
            stack.enter_context(lock_folder(folder, shared=False))
            _link_along(folder, new, keep)
            for inner in (*(path for path in new.iterdir() if path.is_dir() and not path.is_symlink()), new):
                sync_folder(inner)
            replaced = _exchange(new, folder, old)
            _move_along(replaced, folder, keep)
        sync_folder(folder.parent)


def sweep_folders(folder: Path, *, keep: Callable[[Path], bool]) -> None:
    """Remove what killed writers of ``folder`` left beside it, and give back what they had not yet moved along."""
    try:
        left_behind = parts(folder)
    except OSError:
        return
    for part in left_behind:
        with contextlib.suppress(OSError):  # another user's, or gone meanwhile
            descriptor = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if try_lock(descriptor):
                    _recover(part, folder, keep)
                    shutil.rmtree(part)
            finally:
                os.close(descriptor)


def _recover(part: Path, folder: Path, keep: Callable[[Path], bool]) -> None:
    if (part / _OLD).is_dir() and not folder.exists():
        (part / _OLD).rename(folder)
    for name in (_NEW, _OLD):
        if (part / name).is_dir() and folder.is_dir():
            _move_along(part / name, folder, lambda path: keep(path) and not os.path.lexists(folder / path.name))


@contextmanager
def _workspace(folder: Path) -> Iterator[Path]:
    """A locked folder beside ``folder`` while this context lasts: folders move within one file system only."""
    while True:
        workspace = Path(tempfile.mkdtemp(dir=folder.parent, prefix=hidden_name(folder.name), suffix=PART))
        descriptor = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY)
        with contextlib.suppress(OSError):  # where there are no locks, nothing is swept either
            try_lock(descriptor, patience=1.0)
        if workspace.exists():  # else it was swept before it was locked
            break
        os.close(descriptor)
    try:
        yield workspace
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
        os.close(descriptor)


def _link_along(source: Path, target: Path, keep: Callable[[Path], bool]) -> None:
    """Give ``target`` the files of ``source`` that are kept, so that they are there at every moment."""
    for path in source.iterdir():
        if keep(path) and (path.is_symlink() or path.is_file()):
            with contextlib.suppress(OSError):  # a file system without hard links: it is moved afterwards
                os.link(path, target / path.name, follow_symlinks=False)


def _move_along(source: Path, target: Path, keep: Callable[[Path], bool]) -> None:
    """Move to ``target`` what is kept and not there yet, also what was written meanwhile."""
    for path in [path for path in source.iterdir() if keep(path)]:
        there = target / path.name
        if not (os.path.lexists(there) and os.path.samestat(path.lstat(), there.lstat())):
            os.replace(path, there)


def _exchange(new: Path, folder: Path, old: Path) -> Path:
    """Let ``new`` and ``folder`` change places, and return where the former ``folder`` is now."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library without it
        swap = None
    if swap is not None and swap(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(folder), _RENAME_EXCHANGE) == 0:
        return new
    # A file system that cannot exchange: after a kill between these two, the next writer puts the old folder back.
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    return old
