"""Images in folders named after their classes: ``train/cat/1.jpg``, ``train/dog/7.png``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.runtime.sources.images import ENDINGS, decoded, require_pillow
from fqt_deploy.runtime.sources.source import Array, unusable


class ImageFolder:
    """The images below a folder; classes are numbered from 0 in the order of their names.

    Args:
        folder: holds a folder for each class.
        shape: channels, height and width of the images that the step takes.

    Attributes:
        classes: names of the classes.

    Raises:
        FqtError: FQT510 if there are none, or Pillow is missing.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        require_pillow(folder)
        self._shape = shape
        self.classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
        self._files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(self.classes):
            files = sorted(file for file in (folder / name).rglob("*") if file.suffix.lower() in ENDINGS)
            if not files:
                raise unusable(folder / name, "it holds no images", f"endings are {', '.join(sorted(ENDINGS))}")
            self._files += files
            labels += [label] * len(files)
        if not self._files:
            raise unusable(folder, "it holds no folders of images", "a folder for each class, with its images")
        self._labels = np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._files)

    def rows(self, index: NDArray[np.int64]) -> tuple[Array, Array]:
        """Images as uint8 [n, channels, height, width] and labels as int64 [n]."""
        images = [decoded(_content(self._files[i]), str(self._files[i]), self._shape) for i in index]
        return np.stack(images), self._labels[index]


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise unusable(file, str(error.strerror)) from None
