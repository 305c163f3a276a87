"""Checkpoints: the whole state of a training run in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.runtime.files import Arrays, read_tensors, replace_file, state_misfit, tensors_to_bytes

FORMAT = 1
"""Raised when an older runtime could not read a newer checkpoint."""

_FINGERPRINT, _FORMAT = "fqt_fingerprint", "fqt_format"


def save_checkpoint(
    path: Path | str, manifest: Manifest, state: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Write a checkpoint, whole or not at all; an older file is replaced.

    Args:
        path: the file.
        manifest: of the artifact that is trained.
        state: all arrays by name.
        metadata: what else a resumed run needs, as text.

    Raises:
        FqtError: FQT508 if it cannot be written.
    """
    header = {**metadata, _FINGERPRINT: manifest.fingerprint, _FORMAT: str(FORMAT)}
    replace_file(Path(path), tensors_to_bytes(state, header))


def load_checkpoint(path: Path | str, manifest: Manifest) -> tuple[Arrays, dict[str, str]]:
    """Read a checkpoint of the artifact with ``manifest``.

    Returns:
        All state arrays by name, and the metadata given to ``save_checkpoint``.

    Raises:
        FqtError: FQT502 if the file is missing or damaged, FQT503 for another format, FQT504 if it is not a
            checkpoint or belongs to another artifact.
    """
    path = Path(path)
    arrays, header = read_tensors(path)
    fingerprint, version = header.pop(_FINGERPRINT, None), header.pop(_FORMAT, None)
    if fingerprint is None or version is None:
        raise FqtError(f"{path} is not a checkpoint", code="FQT504", hint="load weights with Session.load_state_dict")
    if version != str(FORMAT):
        raise FqtError(
            f"{path} has format {version}, this runtime reads {FORMAT}",
            code="FQT503",
            hint="install the version of fqt-deploy that wrote it",
        )
    if fingerprint != manifest.fingerprint:
        raise FqtError(
            f"{path} was saved by another model or with other options than {manifest.name}",
            code="FQT504",
            hint="resume with the artifact that wrote it, or load its weights only",
        )
    if misfit := state_misfit(manifest.state, arrays):
        raise FqtError(f"{path}: {misfit}", code="FQT502")
    return arrays, header
