"""Artifacts on disk: a folder of members, and ``SHA256SUMS`` with the digest of each; see docs/bundle.md."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.core.step_notes import NOTES
from fqt_deploy.runtime.files import (
    Arrays,
    digest_of_file,
    read_aligned_tensors,
    read_file,
    state_misfit,
    tensors_to_bytes,
)
from fqt_deploy.runtime.folders import replace_folder, sweep_folders
from fqt_deploy.runtime.locks import lock_folder
from fqt_deploy.runtime.processor import missing_extensions
from fqt_deploy.runtime.zero_state import stored_state, with_absent_zeros

MANIFEST, LIBRARY, STATE, SUMS = "manifest.json", "step.so", "state.safetensors", "SHA256SUMS"
"""Names in an artifact; ``SUMS`` lists every member but itself, as ``sha256sum`` prints it."""
RUNTIME_LIBRARY = "libtvm_runtime.so"
BUNDLED_RUNTIME = f"lib/{RUNTIME_LIBRARY}"
"""TVM's runtime library for the artifact's target."""
CUDA_RUNTIME_LIBRARY = "libtvm_runtime_cuda.so"
"""The name of TVM's runtime library for GPUs, which lies beside the other where the target is a GPU."""

_MEMBERS = (MANIFEST, LIBRARY, STATE, SUMS, NOTES, "lib", "licenses")
"""The members that an artifact may hold whose ``SUMS`` cannot be read."""
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
    if not (folder / MANIFEST).is_file():  # nor a pipe, which would have no end
        lacks = f"has no {MANIFEST}" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
        raise FqtError(f"{folder} {lacks}", code="FQT501", hint="make an artifact with fqt-compile")
    # The version comes first: what else to expect depends on it.
    manifest = Manifest.from_json(read_file(folder / MANIFEST))
    check_members(folder)
    _check_machine(folder, manifest.target)
    arrays = with_absent_zeros(manifest.state, read_aligned_tensors(folder / STATE))
    if misfit := state_misfit(manifest.state, arrays):
        raise FqtError(f"{folder / STATE}: {misfit}", code="FQT502")
    return manifest, {spec.name: arrays[spec.name] for spec in manifest.state}, folder / LIBRARY


@contextmanager
def unreplaced(folder: Path) -> Iterator[None]:
    """Within this context the artifact ``folder`` stays as it is: members of two builds are never read together.

    Raises:
        FqtError: FQT508 if it is being replaced by another process.
    """
    with ExitStack() as stack:
        with suppress(OSError):  # what is no folder has its own error; a file system without locks is read without
            stack.enter_context(lock_folder(folder, shared=True))
        yield


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
        if digest_of_file(folder / name) != expected:
            raise FqtError(
                f"{folder / name} is not the file that {SUMS} was written for",
                code="FQT502",
                hint="copy the whole folder again, or compile again",
            )


def read_sums(folder: Path) -> dict[str, str]:
    """Digest by member, a path relative to ``folder``; FQT502 if ``SUMS`` is missing or malformed."""
    sums: dict[str, str] = {}
    for number, line in enumerate(read_file(folder / SUMS).decode(errors="replace").splitlines(), 1):
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
    library: Path | bytes,
    companions: Mapping[str, Path] | Mapping[str, bytes],
) -> None:
    """Write an artifact, whole or not at all; an older artifact in its place is replaced.

    Args:
        folder: the folder to write; its parent is created.
        manifest: what it holds.
        state: the state by name, as the manifest says.
        library: the place where ``step.so`` lies, or its content.
        companions: the other members, such as TVM's runtime library, by their paths in the artifact: the same.

    Raises:
        FqtError: FQT508 if the folder holds something else, is in use by another process, or cannot be written.
    """
    if misfit := state_misfit(manifest.state, state):
        raise FqtError(f"the state does not fit the manifest: {misfit}", code="FQT900")
    files = {
        MANIFEST: manifest.to_json().encode(),
        LIBRARY: library if isinstance(library, bytes) else read_file(library),
        STATE: tensors_to_bytes(stored_state(manifest.state, state)),
        **{name: source if isinstance(source, bytes) else read_file(source) for name, source in companions.items()},
    }
    write_members(folder, files)


def write_members(folder: Path | str, members: Mapping[str, bytes]) -> None:
    """Write an artifact of ``members``, contents by their paths in it, and their digests; as ``write_artifact``."""
    shown, folder = folder, Path(os.path.realpath(folder))  # where it is a symbolic link, what that points to
    check_replaceable(folder)
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in members.items())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        replace_folder(folder, {**members, SUMS: sums.encode()}, keep=_is_no_member)
    except OSError as error:
        raise FqtError(f"cannot write {shown}: {error.strerror or error}", code="FQT508") from None


def read_members(folder: Path) -> dict[str, bytes]:
    """The members of an artifact but ``SUMS``, contents by their paths in it; FQT502 if one cannot be read."""
    return {name: read_file(folder / name) for name in read_sums(folder)}


def sweep_artifact(folder: Path) -> None:
    """Remove what a killed compilation into ``folder`` left beside it."""
    sweep_folders(Path(os.path.realpath(folder)), keep=_is_no_member)


def _is_no_member(path: Path) -> bool:
    """Whether the file or folder ``path`` lies in an artifact without being part of it, as checkpoints do."""
    try:
        names = list(read_sums(path.parent))
    except FqtError:
        names = []
    return path.name not in {PurePosixPath(name).parts[0] for name in (*_MEMBERS, *names)}


def companions(folder: Path) -> dict[str, Path]:
    """The members of an artifact that ``write_artifact`` takes as ``companions``."""
    return {name: folder / name for name in read_sums(folder) if name not in (MANIFEST, LIBRARY, STATE)}


class Build:
    """The compiled members of an artifact, held open: they stay what they are when the artifact is compiled again.

    Args:
        folder: the artifact.

    Raises:
        FqtError: FQT502 if a member cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sums = {name: digest for name, digest in read_sums(folder).items() if name not in (MANIFEST, STATE)}
        self._descriptors: dict[str, int] = {}
        weakref.finalize(self, _close_all, self._descriptors)
        for name in self._sums:
            try:
                self._descriptors[name] = os.open(folder / name, os.O_RDONLY)
            except OSError as error:
                raise FqtError(f"cannot read {folder / name}: {error.strerror}", code="FQT502") from None

    def contents(self) -> dict[str, bytes]:
        """The content of each member; FQT502 if a file was overwritten in place."""
        found = {}
        for name, descriptor in self._descriptors.items():
            size = os.fstat(descriptor).st_size
            found[name] = os.pread(descriptor, size, 0)
            if hashlib.sha256(found[name]).hexdigest() != self._sums[name]:
                raise FqtError(
                    f"{self._folder / name} was overwritten after it was loaded",
                    code="FQT502",
                    hint="save a checkpoint; it resumes with the artifact that was loaded",
                )
        return found


def _close_all(descriptors: Mapping[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


def check_replaceable(folder: Path) -> None:
    """FQT508 if ``folder`` is a file, or a folder that holds anything but an artifact."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FqtError(f"{folder} is a file", code="FQT508", hint="choose another output")
    manifest = folder / MANIFEST
    # Other programs keep a file of this name too: those folders are not ours to replace.
    ours = manifest.is_file() and b'"schema_version"' in read_file(manifest)
    if not ours and any(folder.iterdir()):
        raise FqtError(
            f"{folder} is not empty and not an artifact", code="FQT508", hint="choose another output, or remove it"
        )
