"""The artifact of a model: copied from the build cache where it was compiled before, else compiled."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fqt_deploy.build_cache.fingerprint import fingerprint
from fqt_deploy.build_cache.surroundings import FileState, are_unchanged, file_states, loaded_files, surroundings
from fqt_deploy.core.file_cache import FileCache, cache_limit, compiler_sources, digest
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.core.one_compilation import one_at_a_time
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.core.user_cache import default_log, user_cache
from fqt_deploy.core.watched_files import watched_files
from fqt_deploy.runtime.artifact import MANIFEST, read_members, write_members

if TYPE_CHECKING:
    from fqt_deploy.capture.load_model import ModelSource
    from fqt_deploy.compiler.compile_model import CompileResult, LoweredModel

LIMIT_VARIABLE = "FQT_BUILD_CACHE"
"""Environment variable with the megabytes that the artifacts may take; 0 switches the cache off."""
DEFAULT_LIMIT = 1024
"""Megabytes that the artifacts may take by default: about seven of a ResNet-18, with its state."""
ENDING = ".build"
_RECORD = "build.json"
"""The member of an entry that holds what is no part of the artifact."""


@dataclass(frozen=True)
class Build:
    """An artifact that was written.

    Attributes:
        manifest: manifest of the artifact, as written.
        output: the artifact's folder.
        notes: what a person should know of the model, a line each.
        compiled: what the compiler says; None where the artifact was compiled before.
    """

    manifest: Manifest
    output: Path
    notes: tuple[str, ...]
    compiled: CompileResult | None


@one_at_a_time
def build_artifact(
    source: ModelSource,
    options: CompileOptions,
    output: Path,
    *,
    progress: Callable[[str], None] | None = None,
    read: Iterable[str] = (),
) -> Build:
    """Write the artifact of ``source`` into the folder ``output``, whole or not at all.

    It comes from the cache where model, weights, example batch, options, the user's code, the files that were read
    and the installed packages are all what they were. The cache is in the user's cache folder.

    Args:
        source: model, loss and example inputs.
        options: how to compile.
        output: folder to write; an artifact that is there is replaced.
        progress: told the phases.
        read: files that were read to make ``source``.

    Raises:
        FqtError: as ``compile_model``; FQT202 if ``FQT_BUILD_CACHE`` is not a number.
    """
    cache = _build_cache(options)
    key = fingerprint(source, options) if cache is not None else None
    entry = cache.path([key]) if cache is not None and key is not None else None
    if cache is not None and entry is not None and (content := cache.read(entry)) is not None:
        found = _unpack(content, output)
        if found is not None:
            return found
    from fqt_deploy.compiler.compile_model import (
        compile_model,
        lower_model,  # takes seconds
    )

    with watched_files() as opened:
        lowered = lower_model(source, options, progress=progress, whole=True)
    result = compile_model(source, options, output, progress=progress, lowered=lowered)
    notes = notes_of(lowered)
    if cache is not None and entry is not None:
        needed = file_states({*read, *opened, *loaded_files()})
        cache.write(entry, _pack(output, notes, needed))
        cache.trim()
    return Build(result.manifest, output, notes, result)


def notes_of(lowered: LoweredModel) -> tuple[str, ...]:
    """What a person should know of the model: why a selection is not the default one, and the notes of passes."""
    train = lowered.train
    return (f"--agp {train.selection}: {train.selection_note}", *train.notes) if train.selection_note else train.notes


def _build_cache(options: CompileOptions) -> FileCache | None:
    """The cache; None if it is switched off, or ``options`` ask for what only a compilation can show or measure."""
    limit = cache_limit(LIMIT_VARIABLE, DEFAULT_LIMIT)
    shown = options.dump_ir is not None or options.print_after or options.time_passes
    if not limit or shown or options.tune or options.verify == "numerics":
        return None
    sources = compiler_sources()
    if sources is None:
        return None
    return FileCache(user_cache() / "builds", limit, ENDING, digest(sources, _tuning_log(options), *surroundings()))


def _tuning_log(options: CompileOptions) -> str:
    """The measured tiles that the compilation goes by, as their file has them."""
    path = options.tuning_log or default_log()
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _pack(folder: Path, notes: tuple[str, ...], needed: list[FileState]) -> bytes:
    """The entry for the artifact ``folder``: its members, not packed, with the record of what it depends on."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_RECORD, json.dumps({"notes": notes, "files": needed}))
        for name, member in read_members(folder).items():
            archive.writestr(name, member)
    return content.getvalue()


def _unpack(content: bytes, output: Path) -> Build | None:
    """Write the artifact of an entry to ``output``; None if a file that it depends on is not what it was."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        record = json.loads(archive.read(_RECORD))
        if not are_unchanged((path, size, changed) for path, size, changed in record["files"]):
            return None
        members = {name: archive.read(name) for name in archive.namelist() if name != _RECORD}
    write_members(output, members)
    return Build(Manifest.from_json(members[MANIFEST]), output, tuple(record["notes"]), None)
