"""Checkpoints: the whole state of a training run in one safetensors file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.runtime.arrays import check_no_nan
from fqt_deploy.runtime.files import (
    LARGEST_HEADER,
    Arrays,
    parse_tensors,
    read_file,
    replace_file,
    state_misfit,
    sweep,
    tensors_to_bytes,
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
        state: all arrays by name.
        metadata: what else a resumed run needs, as text.

    Raises:
        FqtError: FQT506 if the state holds NaN, FQT508 if it cannot be written or another process is training it; the
            file is as it was.
    """
    path = Path(path)
    check_no_other_writer(path)
    for name, array in state.items():
        check_no_nan(name, array)
    header = {**metadata, _FINGERPRINT: manifest.fingerprint, _FORMAT: str(FORMAT), _DIGEST: _PLACEHOLDER}
    content = tensors_to_bytes(state, header)
    replace_file(path, content.replace(_entry(_PLACEHOLDER), _entry(digest_of(content)), 1))


def digest_of(content: bytes) -> str | None:
    """The SHA-256 digest of a checkpoint with zeros in place of its own entry; None if it has no such entry."""
    key = f'"{_DIGEST}":"'.encode()
    place = content.find(key, 0, 8 + int.from_bytes(content[:8], "little"))
    if place < 0:
        return None
    begin, view = place + len(key), memoryview(content)
    digest = hashlib.sha256(view[:begin])
    digest.update(_PLACEHOLDER.encode())
    digest.update(view[begin + len(_PLACEHOLDER) :])
    return digest.hexdigest()


def _entry(digest: str | None) -> bytes:
    """The bytes that hold the digest in the header."""
    return f'"{_DIGEST}":"{digest}"'.encode()


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
        FqtError: FQT502 if the file is missing or damaged, FQT503 for another format, FQT504 if it is not a
            checkpoint or belongs to another artifact, FQT506 if it holds NaN.
    """
    path = Path(path)
    sweep(Path(os.path.realpath(path)))
    content = read_file(path)
    arrays, header = parse_tensors(content, path)
    fingerprint, version = header.pop(_FINGERPRINT, None), header.pop(_FORMAT, None)
    digest = header.pop(_DIGEST, None)
    if fingerprint is None or version is None:
        raise FqtError(f"{path} is not a checkpoint", code="FQT504", hint="load weights with Session.load_state_dict")
    if version not in {str(number) for number in range(OLDEST_FORMAT, FORMAT + 1)}:
        raise FqtError(
            f"{path} has format {version}, this runtime reads {OLDEST_FORMAT} to {FORMAT}",
            code="FQT503",
            hint="install the version of fqt-deploy that wrote it",
        )
    if (digest is not None or version != str(OLDEST_FORMAT)) and (digest is None or digest_of(content) != digest):
        raise FqtError(f"{path} is damaged: its digest is another", code="FQT502", hint="go on from an older one")
    if fingerprint != manifest.fingerprint:
        raise FqtError(
            f"{path} was saved by another model or with other options than {manifest.name}",
            code="FQT504",
            hint="resume with the artifact that wrote it, or load its weights only",
        )
    if misfit := state_misfit(manifest.state, arrays):
        raise FqtError(f"{path}: {misfit}", code="FQT502")
    if arrays[_STEP].item() < 0:
        raise FqtError(f"{path} is damaged: {arrays[_STEP].item()} steps", code="FQT502")
    for name, array in arrays.items():
        check_no_nan(f"{name} in {path}", array)
    return arrays, header
