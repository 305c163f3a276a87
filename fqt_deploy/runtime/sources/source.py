"""What a source of training data is, and what every one of them says when a file is not as it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError

Array = NDArray[Any]


class Source(Protocol):
    """Samples of one input and one target, read in any order; what they are read from may be larger than memory."""

    def __len__(self) -> int:
        """Number of samples."""

    def rows(self, index: NDArray[np.int64]) -> tuple[Array, Array]:
        """Inputs and targets of the samples ``index``: images as uint8 [n, channels, height, width]."""


def unusable(path: Path | str, what: str, hint: str | None = None) -> FqtError:
    """FQT510: the data at ``path`` cannot be used."""
    return FqtError(f"cannot use {path}: {what}", code="FQT510", hint=hint)


def missing_package(path: Path, package: str, extra: str) -> FqtError:
    """FQT510: a package that reads the data at ``path`` is not installed."""
    return unusable(path, f"{package} is not installed", f"pip install 'fqt-deploy[{extra}]'")


def rows_of(mapped: Array, index: NDArray[np.int64]) -> Array:
    """The rows ``index`` of an array that is mapped into memory, read from front to back: pages once, and ahead."""
    order = np.argsort(index)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return np.asarray(mapped[index[order]])[back]
