"""The source of training data that a path names, whatever lies there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fqt_deploy.core.manifest import Manifest
from fqt_deploy.runtime.sources.array_files import ArrayFiles
from fqt_deploy.runtime.sources.image_folder import ImageFolder
from fqt_deploy.runtime.sources.source import Source, unusable
from fqt_deploy.runtime.sources.tables import read_arrow, read_csv
from fqt_deploy.runtime.sources.tar_shards import TarShards

_BY_ENDING: Mapping[str, Callable[[Path, tuple[int, ...]], Source]] = {
    ".csv": read_csv,
    ".parquet": read_arrow,
    ".arrow": read_arrow,
    ".feather": read_arrow,
    ".tar": lambda path, shape: TarShards([path], shape),
}
HINT = (
    "an .npz, .csv, .parquet, .arrow, .feather or .tar file; a folder with x.npy and y.npy, with .tar files, or with a "
    "folder of images for each class"
)


def is_source(path: Path) -> bool:
    """Whether ``path`` is read by this module; a ``.npz`` file is not."""
    return path.is_dir() or path.suffix.lower() in _BY_ENDING


def open_source(path: Path, manifest: Manifest) -> Source:
    """The samples at ``path`` for the step of ``manifest``.

    Raises:
        FqtError: FQT510 if there is nothing that can be read as samples of the step's input.
    """
    if len(manifest.model_inputs) != 1 or len(manifest.targets) != 1:
        names = ", ".join(spec.name for spec in manifest.inputs)
        raise unusable(path, f"the step takes {names}", f"a .npz file holds them by these names: {names}")
    shape = manifest.model_inputs[0].shape[1:]
    if not path.exists():
        raise unusable(path, "it does not exist", HINT)
    if path.is_file():
        reader = _BY_ENDING.get(path.suffix.lower())
        if reader is None:
            raise unusable(path, f"no reader for {path.suffix or 'a file without ending'}", HINT)
        return reader(path, shape)
    if (path / "x.npy").exists():
        return ArrayFiles(path)
    if shards := sorted(path.glob("*.tar")):
        return TarShards(shards, shape)
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise unusable(path, f"a sample of {list(shape)} is no image of 1 or 3 channels", HINT)
    return ImageFolder(path, shape)
