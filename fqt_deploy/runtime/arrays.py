"""Arrays at the border of the step: checked, aligned, and not copied where they fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import TensorSpec

ALIGNMENT = 64
"""Bytes: what generated vector code assumes of every operand."""

Array = npt.NDArray[Any]


def aligned_empty(shape: tuple[int, ...], dtype: str) -> Array:
    """An uninitialized C-contiguous array that starts on a cache line."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = np.empty(size + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def aligned_copy(array: Array) -> Array:
    """A copy of ``array`` that starts on a cache line."""
    copy = aligned_empty(array.shape, str(array.dtype))
    copy[...] = array
    return copy


def is_aligned(array: Array) -> bool:
    """Whether generated code may read ``array`` as it is."""
    return bool(array.flags.c_contiguous) and array.ctypes.data % ALIGNMENT == 0


def as_array(value: Any, what: str) -> Array:
    """A NumPy view of a NumPy array or of any CPU tensor that speaks DLPack; FQT505 for anything else."""
    if isinstance(value, np.ndarray):
        return value
    detach = getattr(value, "detach", None)
    if callable(detach):
        value = detach()
    try:
        return np.from_dlpack(value)
    except (TypeError, AttributeError, BufferError, RuntimeError) as error:
        raise FqtError(
            f"{what} is a {type(value).__name__}, which cannot be read as a CPU array: {error}", code="FQT505"
        ) from None


def check_array(value: Any, spec: TensorSpec) -> Array:
    """``value`` as an aligned array of exactly ``spec``'s shape and dtype, without a copy where it is one already.

    Raises:
        FqtError: FQT505 for another shape or dtype, FQT506 for NaN or infinity.
    """
    array = as_array(value, spec.name)
    if str(array.dtype) != spec.dtype or array.shape != spec.shape:
        batch_differs = array.shape[1:] == spec.shape[1:]
        raise FqtError(
            f"{spec.name} is {array.dtype} {list(array.shape)}, not {spec.dtype} {list(spec.shape)}",
            code="FQT505",
            hint="the batch size is fixed when compiling: fqt-compile --batch" if batch_differs else None,
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        where = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
        raise FqtError(f"{spec.name} contains NaN or infinity, first at {where}", code="FQT506")
    return array if is_aligned(array) else aligned_copy(array)


def check_labels(labels: Array, classes: int | None) -> None:
    """FQT507 if a class index lies outside of [0, ``classes``)."""
    if classes is None:
        return
    bad = np.argwhere((labels < 0) | (labels >= classes))
    if len(bad):
        first = tuple(int(i) for i in bad[0])
        raise FqtError(
            f"label {int(labels[first])} at position {list(first)} is out of range: the model has {classes} classes",
            code="FQT507",
        )
