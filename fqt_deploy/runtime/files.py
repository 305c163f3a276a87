"""Writing files so that a crash leaves the old ones or the new ones, never a part."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
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
_NAMES_OF_TYPES = {numpy: name for name, numpy in _TYPES.items()}
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


def replace_file(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write ``path`` whole or not at all, from one piece or several; where it is a symbolic link, what it points to.

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
            file.writelines((content,) if isinstance(content, bytes) else content)
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


@dataclass(frozen=True)
class TensorFile:
    """An open safetensors file, whose arrays are read one by one.

    Attributes:
        path: the file, for messages.
        file: its content, from any place.
        header: the bytes before the arrays.
        entries: type, shape and place of each array by name.
        metadata: texts by name.
    """

    path: Path
    file: BufferedReader
    header: bytes
    entries: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, str]

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of each array by name."""
        return {
            name: TensorSpec(name, tuple(entry["shape"]), _TYPES[entry["dtype"]])
            for name, entry in self.entries.items()
        }

    def read(self, name: str) -> NDArray[Any]:
        """The array in aligned memory of its own; FQT502 if the file holds something else than its header says."""
        try:
            entry = self.entries[name]
            array = empty_aligned(entry["shape"], _TYPES[entry["dtype"]])
            first, end = entry["data_offsets"]
            self.file.seek(len(self.header) + first)
            if end - first != array.nbytes or self.file.readinto(_bytes_of(array)) != array.nbytes:
                raise ValueError("it holds something else than its header says")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FqtError(f"{self.path} is damaged: {error}", code="FQT502") from None
        return array

    def pieces(self) -> Iterator[bytes]:
        """What comes behind the header, piece by piece."""
        self.file.seek(len(self.header))
        while piece := self.file.read(1 << 20):
            yield piece


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a safetensors file.

    Raises:
        FqtError: FQT502 if it is missing, cannot be read or is damaged.
    """
    with _reading(path) as file:
        try:
            with safe_open(path, "numpy") as checked:  # which compares sizes and offsets with the file's
                names = list(checked.keys())
            length = file.read(8)
            content = file.read(int.from_bytes(length, "little"))
            header = json.loads(content)
            tensors = TensorFile(
                path, file, length + content, {name: header[name] for name in names}, header.get("__metadata__") or {}
            )
            assert tensors.specs.keys() == set(names)  # each of a known type
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FqtError(f"{path} is damaged: {error}", code="FQT502") from None
        yield tensors


def read_aligned_tensors(path: Path) -> Arrays:
    """Arrays of a safetensors file, each read into aligned memory of its own: the file is not in memory beside them.

    Raises:
        FqtError: FQT502 if it is missing, cannot be read or is damaged.
    """
    with open_tensors(path) as tensors:
        return {name: tensors.read(name) for name in tensors.entries}


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The bytes of a C-contiguous array, in its own memory."""
    return array.reshape(-1).view(np.uint8).data


def tensor_header(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """What a safetensors file begins with whose arrays follow in this order, each as its bytes in C order."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for spec in specs:
        begin, end = end, end + spec.size * np.dtype(spec.dtype).itemsize
        kind = _NAMES_OF_TYPES[spec.dtype]
        entries[spec.name] = {"dtype": kind, "shape": list(spec.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tensor_bytes(array: NDArray[Any]) -> memoryview:
    """The bytes of an array in C order, without a copy where it lies so."""
    return _bytes_of(np.asarray(array, order="C"))


def state_misfit(
    specs: tuple[TensorSpec, ...], arrays: Mapping[str, NDArray[Any]] | Mapping[str, TensorSpec]
) -> str | None:
    """The difference of ``arrays`` from ``specs`` in names, shapes and dtypes, in words; None if there is none."""
    wanted = {spec.name: spec for spec in specs}
    if missing := [name for name in wanted if name not in arrays]:
        return f"{missing[0]} is missing ({len(missing)} in all)"
    if unexpected := [name for name in arrays if name not in wanted]:
        return f"{unexpected[0]} is unexpected ({len(unexpected)} in all)"
    for name, spec in wanted.items():
        array = arrays[name]
        dtype = str(array.dtype)
        if array.shape != spec.shape or dtype != spec.dtype:
            return f"{name} is {dtype}{list(array.shape)}, expected {spec.dtype}{list(spec.shape)}"
    return None
