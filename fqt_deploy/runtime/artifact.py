"""Artifacts on disk: a folder of members, and ``SHA256SUMS`` with the digest of each; see docs/bundle.md."""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
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
from fqt_deploy.runtime.processor import missing_extensions

MANIFEST, LIBRARY, STATE, SUMS = "manifest.json", "step.so", "state.safetensors", "SHA256SUMS"
"""Names in an artifact; ``SUMS`` lists every member but itself, as ``sha256sum`` prints it."""
RUNTIME_LIBRARY = "libtvm_runtime.so"
BUNDLED_RUNTIME = f"lib/{RUNTIME_LIBRARY}"
"""TVM's runtime library for the artifact's target."""
CUDA_RUNTIME_LIBRARY = "libtvm_runtime_cuda.so"
"""Beside it, where the target is a GPU."""

_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>[^\n]+)")


def read_artifact(folder: Path | str) -> tuple[Manifest, Arrays, Path]:
    """Read and verify an artifact; no code in it has run when this returns.

    Args:
        folder: the artifact.

    Returns:
        The manifest; the state by name in the manifest's order, in aligned memory; the path of the library.

    Raises:
        FqtError: FQT501 if the folder is not an artifact, FQT502 if a member is missing, damaged or changed, FQT503 for
            another version, FQT402 if it was compiled for another kind of machine.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        lacks = f"has no {MANIFEST}" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
        raise FqtError(f"{folder} {lacks}", code="FQT501", hint="make an artifact with fqt-compile")
    # The version comes first: what else to expect depends on it.
    manifest = Manifest.from_json(_read(folder / MANIFEST))
    check_members(folder)
    _check_machine(folder, manifest.target)
    arrays, _ = read_tensors(folder / STATE)
    if misfit := state_misfit(manifest.state, arrays):
        raise FqtError(f"{folder / STATE}: {misfit}", code="FQT502")
    return manifest, {spec.name: aligned_copy(arrays.pop(spec.name)) for spec in manifest.state}, folder / LIBRARY


def _check_machine(folder: Path, target: Mapping[str, str]) -> None:
    """FQT402 if the code in an artifact is not for this machine."""
    arch = target.get("arch", "")
    if arch != platform.machine():
        raise FqtError(
            f"{folder} is compiled for {arch}, this machine is {platform.machine()}",
            code="FQT402",
            hint="compile the model with another --target",
        )
    if missing := missing_extensions(arch, target.get("requires", "")):
        raise FqtError(
            f"{folder} is compiled for {target.get('mcpu')}; this machine's processor lacks {', '.join(missing)}",
            code="FQT402",
            hint="compile the model with another --mcpu",
        )


def check_members(folder: Path) -> None:
    """FQT502 unless every member has the digest that ``SUMS`` gives, and no required member is missing there."""
    sums = read_sums(folder)
    if missing := [name for name in (MANIFEST, LIBRARY, STATE) if name not in sums]:
        raise FqtError(f"{folder / SUMS} does not list {missing[0]}", code="FQT502")
    for name, expected in sums.items():
        if hashlib.sha256(_read(folder / name)).hexdigest() != expected:
            raise FqtError(
                f"{folder / name} is not the file that {SUMS} was written for",
                code="FQT502",
                hint="copy the whole folder again, or compile again",
            )


def read_sums(folder: Path) -> dict[str, str]:
    """Digest by member, a path relative to ``folder``; FQT502 if ``SUMS`` is missing or malformed."""
    sums: dict[str, str] = {}
    for number, line in enumerate(_read(folder / SUMS).decode(errors="replace").splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None or not _stays_inside(match["name"]):
            raise FqtError(f"line {number} of {folder / SUMS} is malformed", code="FQT502")
        sums[match["name"]] = match["digest"]
    return sums


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def write_artifact(
    folder: Path | str,
    manifest: Manifest,
    state: Mapping[str, NDArray[Any]],
    library: Path,
    companions: Mapping[str, Path],
) -> None:
    """Write an artifact, whole or not at all; an older artifact in its place is replaced.

    Args:
        folder: to write; its parent is created.
        manifest: what it holds.
        state: by name, as the manifest says.
        library: where ``step.so`` lies.
        companions: the other members, such as TVM's runtime library: where each lies, by its path in the artifact.

    Raises:
        FqtError: FQT508 if the folder holds something else, or cannot be written.
    """
    folder = Path(folder).absolute()
    if misfit := state_misfit(manifest.state, state):
        raise FqtError(f"the state does not fit the manifest: {misfit}", code="FQT900")
    check_replaceable(folder)
    files = {
        MANIFEST: manifest.to_json().encode(),
        LIBRARY: _read(library),
        STATE: tensors_to_bytes({spec.name: state[spec.name] for spec in manifest.state}),
        **{name: _read(path) for name, path in companions.items()},
    }
    files[SUMS] = "".join(f"{hashlib.sha256(c).hexdigest()}  {name}\n" for name, c in files.items()).encode()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Folders can be renamed only within one file system, hence a sibling.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as workspace:
            _replace_folder(folder, files, Path(workspace))
    except OSError as error:
        raise FqtError(f"cannot write {folder}: {error.strerror or error}", code="FQT508") from None


def companions(folder: Path) -> dict[str, Path]:
    """The members of an artifact that ``write_artifact`` takes as ``companions``."""
    return {name: folder / name for name in read_sums(folder) if name not in (MANIFEST, LIBRARY, STATE)}


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
    """Put a folder with ``files`` in the place of ``folder``; what else lay in an older artifact moves along."""
    new, old = workspace / "new", workspace / "old"
    new.mkdir()
    new.chmod(0o777 & ~current_umask())
    for name, content in files.items():
        (new / name).parent.mkdir(exist_ok=True)
        write_synced(new / name, content)
    # Training leaves its checkpoints in the artifact: they are not ours to remove.
    members = {PurePosixPath(name).parts[0] for name in (*files, *_old_members(folder))}
    others = [path for path in folder.iterdir() if path.name not in members] if folder.is_dir() else []
    for path in others:
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, new / path.name)
    for inner in (*(path for path in new.iterdir() if path.is_dir()), new):
        sync_folder(inner)
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    sync_folder(folder.parent)


def _old_members(folder: Path) -> list[str]:
    """Members of the artifact that is to be replaced; none are known if it is damaged."""
    try:
        return list(read_sums(folder))
    except FqtError:
        return []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FqtError(f"cannot read {path}: {error.strerror}", code="FQT502") from None
