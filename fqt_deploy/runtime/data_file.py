"""Reader of training data in a file of ``numpy.savez``."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.runtime.arrays import check_values

_DAMAGE = (
    OSError, ValueError, EOFError, TypeError, LookupError, AttributeError, RuntimeError, MemoryError, ArithmeticError,
    SyntaxError, AssertionError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""The errors that NumPy and zipfile raise, by kind of damage."""


@dataclass(frozen=True)
class Data:
    """The samples and targets of a file, one of each a row."""

    x: NDArray[np.generic]
    y: NDArray[np.generic]

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: NDArray[np.int64]) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
        """Samples and targets of the rows ``index``."""
        return self.x[index], self.y[index]


def read_data(path: Path, manifest: Manifest) -> Data:
    """Arrays ``x`` and ``y`` of an npz file, as the step of ``manifest`` takes them.

    Raises:
        FqtError: FQT510 if the file does not hold them, FQT506 or FQT507 for NaN or labels out of range in them.
    """
    try:
        x, y = _read_arrays(path)
    except _DAMAGE as error:
        raise FqtError(
            f"cannot read {path}: {error}", code="FQT510", hint="numpy.savez(file, x=..., y=...) writes it"
        ) from None
    if x.dtype == np.uint8:
        x = x.astype(np.float32) / 255
    inputs, targets = manifest.inputs
    if y.dtype.kind in "iu":
        y = _as_targets(path, y, targets.dtype)
    for name, array, spec in (("x", x, inputs), ("y", y, targets)):
        if array.ndim != len(spec.shape) or array.shape[1:] != spec.shape[1:] or str(array.dtype) != spec.dtype:
            raise FqtError(
                f"{name} in {path} is {array.dtype} {list(array.shape)}; the step takes {spec.dtype} samples of "
                f"{list(spec.shape[1:])}",
                code="FQT510",
            )
    if len(x) != len(y) or len(x) < manifest.batch:
        raise FqtError(
            f"{path} holds {len(x)} samples and {len(y)} targets; a batch takes {manifest.batch}", code="FQT510"
        )
    try:
        check_values("x", x)
        check_values("y", y, labels=manifest.labels)
    except FqtError as error:
        raise FqtError(f"in {path}, {error.message}", code=error.code, hint=error.hint) from None
    return Data(x, y)


def _read_arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    if path.exists() and not path.is_file():  # a pipe may have no end
        raise ValueError("it is not a file")
    file = np.load(path)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("it holds one array, not x and y")
    with file:
        if missing := [name for name in ("x", "y") if name not in file]:
            raise ValueError(f"it has no array {missing[0]!r}")
        x, y = file["x"], file["y"]
        if not (isinstance(x, np.ndarray) and isinstance(y, np.ndarray)):
            raise ValueError("x and y are no arrays")  # NumPy gives the bytes of what it does not know
        return x, y


def _as_targets(path: Path, y: NDArray[Any], dtype: str) -> NDArray[Any]:
    """The integers ``y`` as ``dtype``; FQT507 for those that 64 signed bits cannot hold."""
    if y.dtype == np.uint64 and y.size and y.max() > np.iinfo(np.int64).max:
        raise FqtError(f"in {path}, y holds {y.max()}", code="FQT507", hint="number the classes from 0")
    return y.astype(dtype)
