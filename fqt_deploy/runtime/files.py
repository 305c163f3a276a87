"""Writing files so that a crash leaves the old ones or the new ones, never a part."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import TensorSpec

Arrays = dict[str, NDArray[Any]]


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
    """Write ``path`` whole or not at all.

    Raises:
        FqtError: FQT508 if it cannot be written.
    """
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(descriptor)
        temporary = Path(name)
        temporary.chmod(0o666 & ~current_umask())  # mkstemp makes it private
        write_synced(temporary, content)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise FqtError(f"cannot write {path}: {error.strerror}", code="FQT508") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


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


def read_tensors(path: Path) -> tuple[Arrays, dict[str, str]]:
    """Arrays and metadata of a safetensors file.

    Raises:
        FqtError: FQT502 if it is missing, cannot be read or is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except OSError as error:
        raise FqtError(f"cannot read {path}: {error.strerror or error}", code="FQT502") from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise FqtError(f"{path} is damaged: {error}", code="FQT502") from None


def state_misfit(specs: tuple[TensorSpec, ...], arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """How ``arrays`` differ from ``specs`` in names, shapes and dtypes; None if they do not."""
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
