"""Artifacts on disk: a folder of ``manifest.json``, ``step.so`` and ``state.safetensors``."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.runtime.arrays import aligned_copy
from fqt_deploy.runtime.files import (
    Arrays,
    current_umask,
    read_tensors,
    state_misfit,
    sync_folder,
    tensors_to_bytes,
    write_synced,
)

MANIFEST, LIBRARY, STATE = "manifest.json", "step.so", "state.safetensors"


def read_artifact(folder: Path | str) -> tuple[Manifest, Arrays, Path]:
    """Read and verify an artifact.

    Args:
        folder: the artifact.

    Returns:
        The manifest; the state by name in the manifest's order, in aligned memory; the path of the library.

    Raises:
        FqtError: FQT501 if the folder is not an artifact, FQT502 if a file is damaged, FQT503 for another version.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        lacks = f"has no {MANIFEST}" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
        raise FqtError(f"{folder} {lacks}", code="FQT501", hint="make an artifact with fqt-compile")
    manifest = Manifest.from_json(_read(folder / MANIFEST))
    for name, expected in ((LIBRARY, manifest.library_sha256), (STATE, manifest.state_sha256)):
        if hashlib.sha256(_read(folder / name)).hexdigest() != expected:
            raise FqtError(
                f"{folder / name} is not the file that the manifest was written with",
                code="FQT502",
                hint="copy the whole folder again, or compile again",
            )
    arrays, _ = read_tensors(folder / STATE)
    if misfit := state_misfit(manifest.state, arrays):
        raise FqtError(f"{folder / STATE}: {misfit}", code="FQT502")
    return manifest, {spec.name: aligned_copy(arrays[spec.name]) for spec in manifest.state}, folder / LIBRARY


def write_artifact(
    folder: Path | str, manifest: Manifest, state: Mapping[str, NDArray[Any]], library: bytes | Path
) -> Manifest:
    """Write an artifact, whole or not at all; an older artifact in its place is replaced.

    Args:
        folder: to write; its parent is created.
        manifest: without digests.
        state: by name, as the manifest says.
        library: ``step.so``, or where it lies.

    Returns:
        The manifest with the digests of the files.

    Raises:
        FqtError: FQT508 if the folder holds something else, or cannot be written.
    """
    folder = Path(folder).absolute()
    if misfit := state_misfit(manifest.state, state):
        raise FqtError(f"the state does not fit the manifest: {misfit}", code="FQT900")
    check_replaceable(folder)
    code = library if isinstance(library, bytes) else _read(library)
    numbers = tensors_to_bytes({spec.name: state[spec.name] for spec in manifest.state})
    manifest = dataclasses.replace(
        manifest, library_sha256=hashlib.sha256(code).hexdigest(), state_sha256=hashlib.sha256(numbers).hexdigest()
    )
    files = {LIBRARY: code, STATE: numbers, MANIFEST: manifest.to_json().encode()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Folders can be renamed only within one file system, hence a sibling.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as workspace:
            _replace_folder(folder, files, Path(workspace))
    except OSError as error:
        raise FqtError(f"cannot write {folder}: {error.strerror or error}", code="FQT508") from None
    return manifest


def check_replaceable(folder: Path) -> None:
    """FQT508 if ``folder`` is a file, or a folder that holds anything but an artifact."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FqtError(f"{folder} is a file", code="FQT508", hint="choose another output")
    manifest = folder / MANIFEST
    # Other programs keep a file of this name too: those folders are not ours to replace.
    ours = manifest.is_file() and b'"schema_version"' in _read(manifest)
    if not ours and any(folder.iterdir()):
        raise FqtError(
            f"{folder} is not empty and not an artifact", code="FQT508", hint="choose another output, or remove it"
        )


def _replace_folder(folder: Path, files: Mapping[str, bytes], workspace: Path) -> None:
    """Put a folder with ``files`` in the place of ``folder``; other files of an older artifact move along."""
    new, old = workspace / "new", workspace / "old"
    new.mkdir()
    new.chmod(0o777 & ~current_umask())
    for name, content in files.items():
        write_synced(new / name, content)
    # Training leaves its checkpoints in the artifact: they are not ours to remove.
    others = [path for path in folder.iterdir() if path.name not in files] if folder.is_dir() else []
    for path in others:
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, new / path.name)
    sync_folder(new)
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    sync_folder(folder.parent)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FqtError(f"cannot read {path}: {error.strerror}", code="FQT502") from None
