"""Writing files so that a crash leaves the old ones or the new ones, never a part."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import TensorSpec
from fqt_deploy.runtime.arrays import empty_aligned
from fqt_deploy.runtime.locks import hidden_name, is_at, try_lock

Arrays = dict[str, NDArray[Any]]

PART = ".part"
"""The ending of the names of unfinished files: ``.NAME.XXXXXXXX.part``."""
_RANDOM = 8
_TYPES = {
    "BOOL": "bool", "I8": "int8", "U8": "uint8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32",
    "I64": "int64", "U64": "uint64", "F16": "float16", "F32": "float32", "F64": "float64",
}  # fmt: skip
"""NumPy's names of safetensors' element types."""
LARGEST_HEADER = 100_000_000
"""Upper bound of a header's bytes, as in the reference implementation of safetensors."""


def write_synced(path: Path, content: bytes) -> None:
    """Write ``path`` and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names in the folder ``path``."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all; where it is a symbolic link, the file that it points to.

    The new content is first written to a hidden file beside it, which is locked for as long as its writer lives: what a
    killed writer left behind is removed by the next one.

    Raises:
        FqtError: FQT508 if it cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise FqtError(f"cannot write {path}: it is not a file", code="FQT508")
    temporary: Path | None = None
    try:
        sweep(target)
        descriptor, temporary = _create_part(target)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o666 & ~current_umask())  # mkstemp makes it private
            file.write(content)
            file.flush()
            os.fsync(descriptor)
            temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise FqtError(f"cannot write {path}: {error.strerror}", code="FQT508") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _create_part(target: Path) -> tuple[int, Path]:
    """A new locked file beside ``target``, open for writing, and its path."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=hidden_name(target.name), suffix=PART)
        with contextlib.suppress(OSError):  # where there are no locks, nothing is swept either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if is_at(descriptor, name):  # else it was swept before it was locked
            return descriptor, Path(name)
        os.close(descriptor)


def parts(target: Path) -> list[Path]:
    """The hidden files and folders in which writers of ``target`` are, or were, at work."""
    prefix = hidden_name(target.name)
    length = len(prefix) + _RANDOM + len(PART)
    names = os.listdir(target.parent)
    found = [n for n in names if n.startswith(prefix) and n.endswith(PART) and len(n) == length]
    return [target.parent / name for name in sorted(found)]


def sweep(target: Path) -> None:
    """Remove what killed writers of the file ``target`` left beside it; those of living writers are locked."""
    try:
        left_behind = parts(target)
    except OSError:
        return
    for part in left_behind:
        with contextlib.suppress(OSError):  # another user's, or gone meanwhile
            descriptor = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if try_lock(descriptor) and is_at(descriptor, part):
                    part.unlink()
            finally:
                os.close(descriptor)


def current_umask() -> int:
    """The permission bits that new files lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def tensors_to_bytes(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """The content of a safetensors file; arrays may lie in memory in any order."""
    # ``ascontiguousarray`` would give a scalar one dimension.
    content: bytes = save({name: np.array(a, order="C") for name, a in arrays.items()}, dict(metadata or {}))
    return content


def read_file(path: Path) -> bytes:
    """The content of a regular file; FQT502 if it is none, or cannot be read."""
    with _reading(path) as file:
        return file.read()


def digest_of_file(path: Path) -> str:
    """The SHA-256 of a regular file in hexadecimal digits; FQT502 as for ``read_file``."""
    with _reading(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[BufferedReader]:
    try:
        if not path.is_file():  # a pipe or a device would have no end
            raise FqtError(
                f"cannot read {path}: {'it is not a file' if path.exists() else 'there is none'}", code="FQT502"
            )
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise FqtError(f"cannot read {path}: {error.strerror or error}", code="FQT502") from None


def read_aligned_tensors(path: Path) -> Arrays:
    """Arrays of a safetensors file, each read into aligned memory of its own: the file is not in memory beside them.

    Raises:
        FqtError: FQT502 if it is missing, cannot be read or is damaged.
    """
    with _reading(path) as file:
        try:
            with safe_open(path, "numpy") as checked:  # which compares sizes and offsets with the file's
                names = list(checked.keys())
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            return {name: _aligned(file, 8 + length, header[name]) for name in names}
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FqtError(f"{path} is damaged: {error}", code="FQT502") from None


def _aligned(file: BufferedReader, start: int, entry: Mapping[str, Any]) -> NDArray[Any]:
    array = empty_aligned(entry["shape"], _TYPES[entry["dtype"]])
    first, end = entry["data_offsets"]
    file.seek(start + first)
    if end - first != array.nbytes or file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
        raise ValueError("it holds something else than its header says")
    return array


def read_tensors(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Arrays and metadata of a safetensors file.

    Raises:
        FqtError: FQT502 if it is missing, cannot be read or is damaged.
    """
    return parse_tensors(read_file(path), path)


def parse_tensors(content: bytes, path: Path) -> tuple[Arrays, dict[str, str]]:
    """Arrays and metadata of a safetensors file with ``content``; FQT502, naming ``path``, if it is damaged."""
    try:
        arrays = {name: _array(entry) for name, entry in deserialize(content)}  # type: ignore[no-untyped-call]  # it checks sizes and offsets
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FqtError(f"{path} is damaged: {error}", code="FQT502") from None
    return arrays, dict(header.get("__metadata__") or {})


def _array(entry: Mapping[str, Any]) -> NDArray[Any]:
    kind = np.dtype(_TYPES[entry["dtype"]])
    return np.frombuffer(entry["data"], kind, math.prod(entry["shape"])).reshape(entry["shape"])


def state_misfit(specs: tuple[TensorSpec, ...], arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """The difference of ``arrays`` from ``specs`` in names, shapes and dtypes, in words; None if there is none."""
    wanted = {spec.name: spec for spec in specs}
    if missing := [name for name in wanted if name not in arrays]:
        return f"{missing[0]} is missing ({len(missing)} in all)"
    if unexpected := [name for name in arrays if name not in wanted]:
        return f"{unexpected[0]} is unexpected ({len(unexpected)} in all)"
    for name, spec in wanted.items():
        array = arrays[name]
        if array.shape != spec.shape or array.dtype.name != spec.dtype:
            return f"{name} is {array.dtype.name}{list(array.shape)}, expected {spec.dtype}{list(spec.shape)}"
    return None
