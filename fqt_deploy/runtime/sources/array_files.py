"""Arrays in ``.npy`` files, ``x.npy`` and ``y.npy`` of one folder, mapped into memory and read as they are needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.runtime.sources.source import Array, rows_of, unusable


class ArrayFiles:
    """The samples of two array files, a row of each.

    Args:
        folder: holds ``x.npy`` and ``y.npy``.

    Raises:
        FqtError: FQT510 if one is missing or damaged, or they have different numbers of rows.
    """

    def __init__(self, folder: Path) -> None:
        self._x, self._y = (_mapped(folder / f"{name}.npy") for name in "xy")
        if len(self._x) != len(self._y):
            raise unusable(folder, f"x.npy has {len(self._x)} rows, y.npy {len(self._y)}")

    def __len__(self) -> int:
        return len(self._x)

    def rows(self, index: NDArray[np.int64]) -> tuple[Array, Array]:
        """Inputs and targets of the samples ``index``."""
        return rows_of(self._x, index), rows_of(self._y, index)


def _mapped(path: Path) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError, TypeError, SyntaxError, LookupError) as error:
        raise unusable(path, str(error), "numpy.save(file, array) writes it") from None
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        raise unusable(path, "it holds no rows", "numpy.save(file, array) writes it")
    return array
