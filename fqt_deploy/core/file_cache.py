"""Files that are kept between compilations in the user's cache folder, keyed by digests of all that they come from.

So an entry is never out of date, only no longer asked for; those not asked for the longest are removed when all take
more than a limit. Several processes may use a folder at once, and it may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import fqt_deploy
from fqt_deploy.core.diagnostics import FqtError

TRIMMED = 0.8
"""Part of the limit that the entries take after some were removed: removing takes a look at all of them."""
ABANDONED = 3600.0
"""Seconds after which an unfinished entry belongs to a process that was killed."""

_STARTED = time.time()
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class FileCache:
    """The entries of one kind, which share a folder.

    Attributes:
        folder: the folder where they lie; it need not exist.
        limit: bytes that the entries of the folder may take.
        ending: how their names end.
        environment: digest of what all entries come from besides what their keys say.
    """

    folder: Path
    limit: int
    ending: str
    environment: str

    def path(self, key: Iterable[str]) -> Path:
        """The entry of ``key``, texts that say what it is made from."""
        return self.folder / (digest(self.environment, *key) + self.ending)

    def read(self, path: Path) -> bytes | None:
        """The content of the entry ``path``; None if there is none, or it is damaged: then it is made again."""
        try:
            content = path.read_bytes()
        except OSError:
            return None
        expected, kept = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(kept).digest() != expected:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return kept

    def write(self, path: Path, content: bytes) -> None:
        """Keep ``content`` as the entry ``path``, whole or not at all; a folder that cannot be written keeps nothing.

        What would take more than half of the limit is not kept: it would drive out all others.
        """
        if len(content) > self.limit // 2:
            return
        temporary: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self.folder, prefix=".")
            temporary = Path(name)
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
            temporary.replace(path)
        except OSError:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)

    def trim(self) -> None:
        """Remove entries, those not read or written for the longest first, if all take more than ``limit`` bytes."""
        try:
            listed = [(entry.path, entry.name, entry.stat()) for entry in os.scandir(self.folder) if entry.is_file()]
        except OSError:  # there is no folder, or another process is removing entries, too
            return
        oldest = time.time() - ABANDONED
        unfinished = [path for path, name, status in listed if name.startswith(".") and status.st_mtime < oldest]
        entries = sorted((status.st_mtime, status.st_size, path) for path, name, status in listed if name[0] != ".")
        total = sum(size for _, size, _ in entries)
        excess = total - int(TRIMMED * self.limit) if total > self.limit else 0
        removed = []
        for _, size, path in entries:
            if excess <= 0:
                break
            removed.append(path)
            excess -= size
        for name in (*unfinished, *removed):
            with contextlib.suppress(OSError):
                Path(name).unlink(missing_ok=True)


def cache_limit(variable: str, default: int) -> int:
    """The bytes that the environment variable ``variable`` allows, in megabytes there; 0 switches a cache off.

    Raises:
        FqtError: FQT202 if it is not a whole number.
    """
    text = os.environ.get(variable) or str(default)
    if not (text.isascii() and text.isdigit()):
        raise FqtError(
            f"{variable} is {text!r}", code="FQT202", hint="megabytes, a whole number; 0 switches the cache off"
        )
    return int(text) * 2**20


@cache
def compiler_sources() -> str | None:
    """Digest of the compiler's source files; None if one is newer than this process: it is not what runs here."""
    folder = Path(fqt_deploy.__file__).parent
    files = sorted([*folder.rglob("*.py"), *(folder / "codegen").glob("*.[ch]")])
    if max(path.stat().st_mtime for path in files) > _STARTED:
        return None
    return digest(*(f"{path.relative_to(folder)} {path.read_text()}" for path in files))


def digest(*texts: str) -> str:
    """Hexadecimal SHA-256 of ``texts``, each with its length, so that no two lists run together alike."""
    found = hashlib.sha256()
    for text in texts:
        content = text.encode()
        found.update(len(content).to_bytes(8, "little") + content)
    return found.hexdigest()
