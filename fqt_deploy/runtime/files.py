"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from fqt_deploy.core.diagnostics import FqtError


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside ``path``, flush to disk, then rename over it; FQT508 if the place cannot be written."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise FqtError(f"cannot write {path}: {error.strerror}", code="FQT508") from None


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(content: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(content).hexdigest()


def serialize(arrays: Mapping[str, npt.NDArray[np.generic]], metadata: dict[str, str] | None = None) -> bytes:
    """``arrays`` in safetensors format."""
    return bytes(safetensors.numpy.save({k: np.array(v, order="C") for k, v in arrays.items()}, metadata))


def deserialize(content: bytes, what: str) -> dict[str, npt.NDArray[np.generic]]:
    """Arrays of a safetensors file; FQT502 if it is damaged."""
    try:
        return dict(safetensors.numpy.load(content))
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise FqtError(f"{what} is damaged: {error}", code="FQT502") from None
