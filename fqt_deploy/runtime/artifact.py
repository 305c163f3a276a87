"""An artifact on disk: a folder with ``manifest.json``, ``step.so`` and ``state.safetensors``."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.runtime.arrays import Array
from fqt_deploy.runtime.files import deserialize, serialize, sha256, sync_folder, write_atomically

MANIFEST, LIBRARY, STATE = "manifest.json", "step.so", "state.safetensors"


def read_artifact(folder: Path) -> tuple[Manifest, dict[str, Array], Path]:
    """Read and check everything in ``folder``.

    Returns:
        The manifest, the initial state by name in argument order, and the path of the library.

    Raises:
        FqtError: FQT501 if it is no artifact, FQT502 if a file was damaged or changed, FQT503 for another version.
    """
    try:
        manifest = Manifest.from_json((folder / MANIFEST).read_bytes())
    except OSError:
        raise FqtError(
            f"{folder} is not a compiled artifact: it has no readable {MANIFEST}",
            code="FQT501",
            hint="an artifact is a folder written by fqt-compile",
        ) from None
    contents = {}
    for name, digest in ((LIBRARY, manifest.library_sha256), (STATE, manifest.state_sha256)):
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            raise FqtError(f"cannot read {folder / name}: {error.strerror}", code="FQT502") from None
        if sha256(contents[name]) != digest:
            raise FqtError(f"{folder / name} is damaged or was changed since it was compiled", code="FQT502")
    state = deserialize(contents[STATE], str(folder / STATE))
    for spec in manifest.state:
        array = state.get(spec.name)
        if array is None or array.shape != spec.shape or str(array.dtype) != spec.dtype:
            raise FqtError(f"{folder / STATE} does not hold {spec.name} as the manifest says", code="FQT502")
    return manifest, {spec.name: state[spec.name] for spec in manifest.state}, folder / LIBRARY


def write_artifact(folder: Path, manifest: Manifest, state: Mapping[str, Array], library: Path) -> Manifest:
    """Write an artifact beside ``folder``, then rename it into place; an older artifact there is replaced.

    Returns:
        The manifest with the digests of the files.

    Raises:
        FqtError: FQT508 if ``folder`` holds something else or cannot be written.
    """
    check_replaceable(folder)
    code, arrays = library.read_bytes(), serialize(state)
    manifest = dataclasses.replace(manifest, library_sha256=sha256(code), state_sha256=sha256(arrays))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise FqtError(f"cannot write {folder}: {error.strerror}", code="FQT508") from None
    try:
        temporary.chmod(0o755)
        write_atomically(temporary / LIBRARY, code)
        write_atomically(temporary / STATE, arrays)
        write_atomically(temporary / MANIFEST, manifest.to_json().encode())
        if folder.exists():
            old = temporary.with_name(f"{temporary.name}.old")
            folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def check_replaceable(folder: Path) -> None:
    """Refuse to write over anything but an artifact or an empty folder: FQT508."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        Manifest.from_json((folder / MANIFEST).read_bytes())
    except FqtError as error:
        if error.code == "FQT503":
            return
    except OSError:
        pass
    else:
        return
    raise FqtError(
        f"{folder} exists and is no compiled artifact: it is left alone",
        code="FQT508",
        hint="choose another folder with -o",
    )
