"""Reader of training data in a file of ``numpy.savez``."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import InputSpec, Manifest
from fqt_deploy.runtime.arrays import check_values
from fqt_deploy.runtime.choose_variant import sizes_of_samples

_DAMAGE = (
    OSError, ValueError, EOFError, TypeError, LookupError, AttributeError, RuntimeError, MemoryError, ArithmeticError,
    SyntaxError, AssertionError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""The errors that NumPy and zipfile raise, by kind of damage."""


@dataclass(frozen=True)
class Data:
    """The samples and targets of a file: arrays by the names of the step's inputs, a row of each for a sample."""

    arrays: Mapping[str, NDArray[np.generic]]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def rows(self, index: Any) -> dict[str, NDArray[np.generic]]:
        """The samples ``index``, arrays by name."""
        return {name: array[index] for name, array in self.arrays.items()}


def read_data(path: Path, manifest: Manifest) -> Data:
    """The arrays of an npz file that the step of ``manifest`` takes, by their names; other arrays are left alone.

    Raises:
        FqtError: FQT510 if the file does not hold them, FQT506 or FQT507 for NaN or labels out of range in them.
    """
    names = [spec.name for spec in manifest.inputs]
    try:
        arrays = _read_arrays(path, names)
    except _DAMAGE as error:
        wanted = ", ".join(f"{name}=..." for name in names)
        raise FqtError(
            f"cannot read {path}: {error}", code="FQT510", hint=f"numpy.savez(file, {wanted}) writes it"
        ) from None
    fitting = {spec.name: _fitting(path, spec, arrays[spec.name]) for spec in manifest.inputs}
    counts = {name: len(array) for name, array in fitting.items()}
    least = min(sizes_of_samples(manifest.variants))
    if len(set(counts.values())) > 1 or min(counts.values()) < least:
        held = " and ".join(f"{count} of {name}" for name, count in counts.items())
        raise FqtError(f"{path} holds {held}; a batch takes {least} samples", code="FQT510")
    for spec in manifest.inputs:
        try:
            check_values(spec, fitting[spec.name])
        except FqtError as error:
            raise FqtError(f"in {path}, {error.message}", code=error.code, hint=error.hint) from None
    return Data(fitting)


def _read_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    if path.exists() and not path.is_file():  # a pipe may have no end
        raise ValueError("it is not a file")
    file = np.load(path)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError(f"it holds one array, not {' and '.join(names)}")
    with file:
        if missing := [name for name in names if name not in file]:
            raise ValueError(f"it has no array {missing[0]!r}; it has {', '.join(file.files) or 'none'}")
        arrays = {name: file[name] for name in names}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError(f"{' and '.join(names)} are no arrays")  # NumPy gives the bytes of what it does not know
        return arrays


def _fitting(path: Path, spec: InputSpec, array: NDArray[Any]) -> NDArray[Any]:
    """The array in the type of ``spec``: bytes as images from 0 to 1, integers in another width; FQT510 if neither."""
    if array.dtype == np.uint8 and spec.dtype == "float32":
        array = array.astype(np.float32) / 255
    elif array.dtype.kind in "iub" and spec.dtype.startswith("int"):
        array = _as_integers(path, spec, array)
    if array.ndim != len(spec.shape) or array.shape[1:] != spec.shape[1:] or str(array.dtype) != spec.dtype:
        raise FqtError(
            f"{spec.name} in {path} is {array.dtype} {list(array.shape)}; the step takes {spec.dtype} samples of "
            f"{list(spec.shape[1:])}",
            code="FQT510",
        )
    return array


def _as_integers(path: Path, spec: InputSpec, array: NDArray[Any]) -> NDArray[Any]:
    """The integers as ``spec`` has them; FQT507 for those that its type cannot hold."""
    bounds = np.iinfo(spec.dtype)
    if array.size and array.dtype.kind != "b":
        for value in (int(array.max()), int(array.min())):
            if not bounds.min <= value <= bounds.max:
                hint = "number the classes from 0" if spec.role == "target" else None
                raise FqtError(f"in {path}, {spec.name} holds {value}", code="FQT507", hint=hint)
    return array.astype(spec.dtype)
