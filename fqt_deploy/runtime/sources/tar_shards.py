"""Samples in tar files, as WebDataset has them: files of one stem, ``17.jpg`` beside ``17.cls``, are one sample."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.runtime.sources.images import ENDINGS, decoded, require_pillow
from fqt_deploy.runtime.sources.in_threads import in_threads
from fqt_deploy.runtime.sources.source import Array, unusable

TARGETS = (".cls", ".y.npy")
"""The endings of targets: an integer as text, or an array."""
INPUT = ".x.npy"
"""The ending of inputs that are arrays."""


class _Place(NamedTuple):
    """The place of a file: number of the shard, first byte and number of bytes."""

    shard: int
    start: int
    size: int


class TarShards:
    """The samples of several tar files; what is kept of them in memory is where each lies.

    Args:
        shards: the files, not compressed.
        shape: extents of a sample's input.

    Raises:
        FqtError: FQT510 for a file that is no tar file, a sample without input or target, or no sample at all.
    """

    def __init__(self, shards: Sequence[Path], shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._paths = list(shards)
        self._samples: list[tuple[str, str, _Place, str, _Place]] = []
        for number, path in enumerate(self._paths):
            self._samples += _samples_of(path, number)
        if not self._samples:
            raise unusable(shards[0] if shards else "", "there are no samples in it", "000017.jpg beside 000017.cls")
        if any(ending in ENDINGS for _, ending, *_ in self._samples):
            require_pillow(self._paths[0])
        try:
            self._files = [os.open(path, os.O_RDONLY) for path in self._paths]
        except OSError as error:
            raise unusable(str(error.filename), str(error.strerror)) from None

    def __del__(self) -> None:
        for file in getattr(self, "_files", ()):
            os.close(file)

    def __len__(self) -> int:
        return len(self._samples)

    def rows(self, index: NDArray[np.int64]) -> tuple[Array, Array]:
        """Inputs and targets of the samples ``index``."""
        pairs = in_threads(self._sample, index.tolist())
        return np.stack([x for x, _ in pairs]), np.stack([y for _, y in pairs])

    def _sample(self, index: int) -> tuple[Array, Array]:
        stem, ending, at, target, target_at = self._samples[index]
        name = f"{stem}{ending} in {self._paths[at.shard]}"
        content = self._content(at)
        x = decoded(content, name, self._shape) if ending in ENDINGS else _array(content, name)
        text = self._content(target_at)
        if target == ".y.npy":
            return x, _array(text, f"{stem}{target} in {self._paths[at.shard]}")
        try:
            return x, np.array(int(text), dtype=np.int64)
        except ValueError:
            raise unusable(f"{stem}{target} in {self._paths[at.shard]}", "it holds no integer") from None

    def _content(self, place: _Place) -> bytes:
        return os.pread(self._files[place.shard], place.size, place.start)


def _samples_of(path: Path, number: int) -> list[tuple[str, str, _Place, str, _Place]]:
    members: dict[str, dict[str, _Place]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile():
                    folder, _, name = member.name.rpartition("/")
                    stem, dot, ending = name.partition(".")
                    places = members.setdefault(f"{folder}/{stem}", {})
                    places[(dot + ending).lower()] = _Place(number, member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise unusable(path, f"it is no tar file, or compressed: {error}", "write it with tar -cf") from None
    found = []
    for stem, files in members.items():
        inputs = [ending for ending in files if ending in ENDINGS or ending == INPUT]
        targets = [ending for ending in files if ending in TARGETS]
        if len(inputs) != 1 or len(targets) != 1:
            raise unusable(
                path,
                f"sample {stem.lstrip('/')} has {', '.join(files) or 'nothing'}",
                f"a sample is an image or {INPUT}, and {' or '.join(TARGETS)}",
            )
        found.append((stem.lstrip("/"), inputs[0], files[inputs[0]], targets[0], files[targets[0]]))
    return found


def _array(content: bytes, name: str) -> Array:
    try:
        array: Array = np.load(io.BytesIO(content))
    except (OSError, ValueError, EOFError, TypeError, SyntaxError, LookupError) as error:
        raise unusable(name, str(error)) from None
    return array
