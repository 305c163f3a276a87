"""The data that tools.bench_loader trains on: the same images as files and as arrays."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tools.bench_loader import write_arrays, write_folder


def test_files_and_arrays_hold_the_same_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.array([1, 0, 3, 1, 0], np.uint8)
    files = []
    for _ in labels:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "JPEG")
        files.append(file.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    blob = np.frombuffer(b"".join(files), np.uint8)
    np.savez(tmp_path / "images.npz", train_jpeg=blob, train_offsets=offsets, train_labels=labels)
    write_folder(tmp_path / "images.npz", tmp_path / "images", 4)
    found = {path.relative_to(tmp_path / "images").as_posix() for path in (tmp_path / "images").rglob("*.jpg")}
    assert found == {"01/00000.jpg", "00/00001.jpg", "03/00002.jpg", "01/00003.jpg"}
    write_arrays(tmp_path / "images", tmp_path / "arrays.npz")
    with np.load(tmp_path / "arrays.npz") as arrays:
        assert arrays["y"].tolist() == [0, 1, 1, 2], "classes are numbered as their folders come"
        expected = [np.asarray(Image.open(io.BytesIO(files[i]))).transpose(2, 0, 1) for i in (1, 0, 3, 2)]
        assert np.array_equal(arrays["x"], expected)
