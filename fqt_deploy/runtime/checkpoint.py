"""Checkpoints: the whole state of a training run in one safetensors file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest, TensorSpec
from fqt_deploy.runtime.arrays import check_no_nan
from fqt_deploy.runtime.files import (
    LARGEST_HEADER,
    Arrays,
    TensorFile,
    open_tensors,
    replace_file,
    state_misfit,
    sweep,
    tensor_bytes,
    tensor_header,
)
from fqt_deploy.runtime.locks import check_no_other_writer

FORMAT, OLDEST_FORMAT = 2, 1
"""The format that is written, and the oldest that is read: format 1 had no digest."""

_FINGERPRINT, _FORMAT, _DIGEST = "fqt_fingerprint", "fqt_format", "fqt_sha256"
_PLACEHOLDER = "0" * 64
_STEP = "step"
"""The step count in the state."""


def save_checkpoint(
    path: Path | str, manifest: Manifest, state: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write a checkpoint, whole or not at all; an older file is replaced.

    Args:
        path: the file.
        manifest: the manifest of the artifact that is trained.
        state: all arrays by name; each is asked for several times, and may be a copy that is made then.
        metadata: what else a resumed run needs, as text.

    Raises:
        FqtError: FQT506 if the state holds NaN, FQT508 if it cannot be written or another process is training it; the
            file is as it was.
    """
    path = Path(path)
    check_no_other_writer(path)
    specs = []
    for name, array in state.items():
        check_no_nan(name, array)
        specs.append(TensorSpec(name, array.shape, array.dtype.name))
    # Elements of many bytes come first: then each array is aligned to its element.
    specs.sort(key=lambda spec: -np.dtype(spec.dtype).itemsize)
    texts = {**metadata, _FINGERPRINT: manifest.fingerprint, _FORMAT: str(FORMAT), _DIGEST: _PLACEHOLDER}
    header = tensor_header(specs, texts)
    digest = digest_of(header, (tensor_bytes(state[spec.name]) for spec in specs))
    begin = _place_of_digest(header)
    assert digest is not None
    assert begin is not None
    header = header[:begin] + digest.encode() + header[begin + len(digest) :]
    replace_file(path, chain((header,), (tensor_bytes(state[spec.name]) for spec in specs)))


def digest_of(header: bytes, pieces: Iterable[bytes | memoryview]) -> str | None:
    """The SHA-256 digest of a checkpoint with zeros in place of its own entry; None if it has no such entry.

    Args:
        header: what the file begins with.
        pieces: what follows.
    """
    begin = _place_of_digest(header)
    if begin is None:
        return None
    digest = hashlib.sha256(header[:begin])
    digest.update(_PLACEHOLDER.encode())
    digest.update(header[begin + len(_PLACEHOLDER) :])
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _place_of_digest(header: bytes) -> int | None:
    key = f'"{_DIGEST}":"'.encode()
    place = header.find(key)
    return None if place < 0 else place + len(key)


def is_checkpoint(path: Path) -> bool:
    """Whether the file ``path`` begins as a checkpoint does; its arrays may be damaged."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size <= LARGEST_HEADER else None
    except (OSError, ValueError, RecursionError):
        return False
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return isinstance(metadata, dict) and _FINGERPRINT in metadata and _FORMAT in metadata


def load_checkpoint(path: Path | str, manifest: Manifest) -> tuple[Arrays, dict[str, str]]:
    """Read a checkpoint of the artifact with ``manifest``.

    Returns:
        All state arrays by name, and the metadata given to ``save_checkpoint``.

    Raises:
        FqtError: as ``open_checkpoint``; also FQT502 if the file changes while it is read.
    """
    with open_checkpoint(path, manifest) as (tensors, metadata):
        return {name: tensors.read(name) for name in tensors.entries}, metadata


@contextmanager
def open_checkpoint(path: Path | str, manifest: Manifest) -> Iterator[tuple[TensorFile, dict[str, str]]]:
    """Open and check a checkpoint of the artifact with ``manifest``; its arrays are in memory one at a time.

    Returns:
        The file, with all state arrays, and the metadata given to ``save_checkpoint``.

    Raises:
        FqtError: FQT502 if the file is missing or damaged, or changes before the block ends, FQT503 for another
            format, FQT504 if it is not a checkpoint or belongs to another artifact, FQT506 if it holds NaN.
    """
    path = Path(path)
    sweep(Path(os.path.realpath(path)))
    with open_tensors(path) as tensors:
        before = _written(tensors)
        yield tensors, _checked_metadata(tensors, manifest)
        if _written(tensors) != before:
            raise FqtError(f"{path} changed while it was read", code="FQT502", hint="load it again")


def _written(tensors: TensorFile) -> tuple[int, int]:
    """When the file was written last, and its size: ``save_checkpoint`` replaces a file, others may write into it."""
    status = os.fstat(tensors.file.fileno())
    return status.st_mtime_ns, status.st_size


def _checked_metadata(tensors: TensorFile, manifest: Manifest) -> dict[str, str]:
    path, metadata = tensors.path, dict(tensors.metadata)
    fingerprint, version = metadata.pop(_FINGERPRINT, None), metadata.pop(_FORMAT, None)
    digest = metadata.pop(_DIGEST, None)
    if fingerprint is None or version is None:
        raise FqtError(f"{path} is not a checkpoint", code="FQT504", hint="load weights with Session.load_state_dict")
    if version not in {str(number) for number in range(OLDEST_FORMAT, FORMAT + 1)}:
        raise FqtError(
            f"{path} has format {version}, this runtime reads {OLDEST_FORMAT} to {FORMAT}",
            code="FQT503",
            hint="install the version of fqt-deploy that wrote it",
        )
    has_digest = digest is not None or version != str(OLDEST_FORMAT)
    if has_digest and (digest is None or digest_of(tensors.header, tensors.pieces()) != digest):
        raise FqtError(f"{path} is damaged: its digest is another", code="FQT502", hint="go on from an older one")
    if fingerprint != manifest.fingerprint:
        raise FqtError(
            f"{path} was saved by another model or with other options than {manifest.name}",
            code="FQT504",
            hint="resume with the artifact that wrote it, or load its weights only",
        )
    if misfit := state_misfit(manifest.state, tensors.specs):
        raise FqtError(f"{path}: {misfit}", code="FQT502")
    for name in tensors.entries:
        array = tensors.read(name)
        if name == _STEP and array.item() < 0:
            raise FqtError(f"{path} is damaged: {array.item()} steps", code="FQT502")
        check_no_nan(f"{name} in {path}", array)
    return metadata
