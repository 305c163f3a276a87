"""Object code of kernels that was compiled before, in the user's cache folder.

An entry is the object code of one batch of kernels. Its key is a digest of everything that the code comes from: the
kernels, the target with its tuned tiles, the sources of the compiler, the versions of TVM and LLVM. So an entry is
never out of date, only no longer asked for; those not asked for the longest are removed when all take more than
``FQT_KERNEL_CACHE`` megabytes. Several processes may use the folder at once, and it may be deleted at any time.
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

import tvm
import tvm_ffi
from tvm.target import codegen

import fqt_deploy
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.user_cache import user_cache
from fqt_deploy.targets.base import Target

LIMIT_VARIABLE = "FQT_KERNEL_CACHE"
"""Environment variable with the megabytes that the entries may take; 0 switches the cache off."""
DEFAULT_LIMIT = 512
"""Megabytes that the entries may take by default: about two hundred variants of a ResNet-18."""
ENDING = ".kernels"
TRIMMED = 0.8
"""Part of the limit that the entries take after some were removed: removing takes a look at all of them."""
ABANDONED = 3600.0
"""Seconds after which an unfinished entry belongs to a process that was killed."""

_STARTED = time.time()
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class KernelCache:
    """The entries for one target.

    Attributes:
        folder: the folder where they lie; it need not exist.
        limit: bytes that the entries of all targets may take.
        environment: digest of what the code comes from besides the kernels.
    """

    folder: Path
    limit: int
    environment: str

    def path(self, kernels: Iterable[str]) -> Path:
        """The entry of a batch; ``kernels`` are texts that say what each kernel computes, and what it is called."""
        return self.folder / (_digest(self.environment, *kernels) + ENDING)

    def read(self, path: Path) -> bytes | None:
        """The object code of the entry ``path``; None if there is none, or it is damaged: then it is made again."""
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(code).digest() != digest:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return code

    def write(self, path: Path, code: bytes) -> None:
        """Keep ``code`` as the entry ``path``, whole or not at all; a folder that cannot be written keeps nothing."""
        temporary: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self.folder, prefix=".")
            temporary = Path(name)
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
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


def kernel_cache(target: Target) -> KernelCache | None:
    """The cache for ``target``; None if it is switched off, or files of the compiler changed since it was started.

    Raises:
        FqtError: FQT202 if the limit is not a whole number of megabytes.
    """
    text = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_LIMIT)
    if not (text.isascii() and text.isdigit()):
        raise FqtError(
            f"{LIMIT_VARIABLE} is {text!r}", code="FQT202", hint="megabytes, a whole number; 0 switches the cache off"
        )
    sources = _compiler_sources() if int(text) else None
    if sources is None:
        return None
    return KernelCache(user_cache() / "kernels", int(text) * 2**20, _digest(sources, *_environment(target)))


def _environment(target: Target) -> tuple[str, ...]:
    """All that scheduling and code generation go by besides the kernels, as texts."""
    return (
        f"{tvm.__version__} {tvm_ffi.__version__} {codegen.llvm_version_major()}",
        f"{type(target).__name__} {target.name} {target.tvm_target} {target.features}",
        " ".join(f"{type(rule).__qualname__}{vars(rule)}" for rule in target.rules),
        repr(sorted(target.tuned.items())),
    )


@cache
def _compiler_sources() -> str | None:
    """Digest of the compiler's source files; None if one is newer than this process: it is not what runs here."""
    folder = Path(fqt_deploy.__file__).parent
    files = sorted(folder.rglob("*.py"))
    if max(path.stat().st_mtime for path in files) > _STARTED:
        return None
    return _digest(*(f"{path.relative_to(folder)} {path.read_text()}" for path in files))


def _digest(*texts: str) -> str:
    """Hexadecimal SHA-256 of ``texts``, each with its length, so that no two lists run together alike."""
    found = hashlib.sha256()
    for text in texts:
        content = text.encode()
        found.update(len(content).to_bytes(8, "little") + content)
    return found.hexdigest()
