"""Image data sets by path, decoded once: CIFAR-10 in three forms, folders of images, and scikit-learn's digits."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from fqt_deploy.core.diagnostics import FqtError
from tools.training import Array

SIZE = 32
"""Height and width that images of a folder are scaled to."""
_CIFAR_IMAGE = 3 * 32 * 32
_PART = {"train": "data_batch_*", "test": "test_batch*"}
_HINT = (
    "give 'digits', an npz of JPEG files (train_jpeg, train_offsets, train_labels, test_...), a folder with CIFAR-10's "
    "batches, or a folder with train/CLASS/*.png and test/CLASS/*.png"
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images ``[n, C, H, W] uint8`` and labels ``[n] int64``, in a fixed order that is random in the classes."""

    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.train_y.max()) + 1


def load_dataset(where: str, cache: Path) -> Dataset:
    """The data set called ``where``.

    Args:
        where: ``digits``, or the path of an npz of JPEG files, of CIFAR-10's binary or Python batches, or of a folder
            with a folder of images for each class in ``train`` and in ``test``.
        cache: folder for decoded images; found there, they are not decoded again.

    Raises:
        FqtError: FQT103 if there is no data set of a known form.
    """
    if where == "digits":
        return _digits()
    path = Path(where)
    if not path.exists():
        raise FqtError(f"no data at {path}", code="FQT103", hint=_HINT)
    key = hashlib.sha256(f"{path.resolve()} {path.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    stored = cache / f"images-{key}.npz"
    if not stored.exists():
        parts = {part: _read(path, part) for part in ("train", "test")}
        cache.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {
            f"{part}_{axis}": array for part, pair in parts.items() for axis, array in zip("xy", pair, strict=True)
        }
        temporary = stored.with_suffix(f".{os.getpid()}.part.npz")  # several processes may be at it
        np.savez(temporary, **arrays)
        temporary.replace(stored)
    with np.load(stored) as arrays_:
        return Dataset(**{name: arrays_[name] for name in ("train_x", "train_y", "test_x", "test_y")})


def _read(path: Path, part: str) -> tuple[Array, Array]:
    if path.is_file():
        return _read_jpegs(path, part)
    batches = sorted(path.glob(_PART[part]))
    if batches:
        return _joined([_read_batch(batch) for batch in batches])
    if (path / part).is_dir():
        return _read_folder(path / part)
    raise FqtError(f"{path} holds neither CIFAR-10's batches nor a folder {part}", code="FQT103", hint=_HINT)


def _read_jpegs(path: Path, part: str) -> tuple[Array, Array]:
    try:
        with np.load(path) as arrays:
            blob, offsets = arrays[f"{part}_jpeg"].tobytes(), arrays[f"{part}_offsets"].tolist()
            labels = arrays[f"{part}_labels"].astype(np.int64)
    except (ValueError, KeyError, OSError) as error:
        raise FqtError(f"{path} is not an npz of JPEG files: {error}", code="FQT103", hint=_HINT) from None
    files = (blob[begin:end] for begin, end in itertools.pairwise(offsets))
    return np.stack([_decode(io.BytesIO(file), str(path)) for file in files]), labels


def _read_batch(path: Path) -> tuple[Array, Array]:
    """One file of CIFAR-10's batches: rows of a label and 3072 pixels (``.bin``), or a pickled dictionary."""
    if path.suffix == ".bin":
        content = np.fromfile(path, np.uint8)
        if content.size % (1 + _CIFAR_IMAGE):
            raise FqtError(f"{path} has {content.size} bytes, no multiple of {1 + _CIFAR_IMAGE}", code="FQT103")
        rows = content.reshape(-1, 1 + _CIFAR_IMAGE)
        pixels, labels = rows[:, 1:], rows[:, 0]
    else:
        with path.open("rb") as file:
            try:
                batch = _ArrayUnpickler(file, encoding="bytes").load()
                pixels, labels = np.asarray(batch[b"data"], np.uint8), np.asarray(batch[b"labels"])
            except (pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
                raise FqtError(f"{path} is not a batch of CIFAR-10: {error}", code="FQT103", hint=_HINT) from None
    return pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays and plain values; a file cannot make it call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = ("_reconstruct", "ndarray", "dtype", "scalar")
        if module.partition(".")[0] == "numpy" and name in allowed:
            found: Callable[..., Any] = super().find_class(module, name)
            return found
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


def _read_folder(path: Path) -> tuple[Array, Array]:
    """Images of a folder that has a folder for each class."""
    pairs = [
        (_decode(file, str(file)), label)
        for label, folder in enumerate(sorted(entry for entry in path.iterdir() if entry.is_dir()))
        for file in sorted(folder.iterdir())
    ]
    if not pairs:
        raise FqtError(f"{path} holds no folder with images", code="FQT103", hint=_HINT)
    order = np.random.default_rng(0).permutation(len(pairs))
    images, labels = np.stack([image for image, _ in pairs]), np.array([label for _, label in pairs], np.int64)
    return images[order], labels[order]


def _decode(file: Any, name: str) -> Array:
    try:
        with Image.open(file) as image:
            rgb = image.convert("RGB")
    except UnidentifiedImageError:
        raise FqtError(f"{name} holds what is no image", code="FQT103") from None
    if rgb.size != (SIZE, SIZE):
        rgb = rgb.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.asarray(rgb).transpose(2, 0, 1)


def _digits() -> Dataset:
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    x = (15 * pixels[order]).astype(np.uint8).reshape(-1, 1, 8, 8)  # of 0 to 16
    y = labels[order].astype(np.int64)
    cut = len(x) * 3 // 4
    return Dataset(x[:cut], y[:cut], x[cut:], y[cut:])


def _joined(parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
