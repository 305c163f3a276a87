"""Arrays that a compiled step may read and write: of the promised shape and type, aligned, and free of bad values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import IndexRange, InputSpec, TensorSpec

Array = NDArray[Any]

ALIGNMENT = 64
"""Alignment of operands in bytes; the generated code uses aligned vector loads."""


def empty_aligned(shape: Sequence[int], dtype: str | np.dtype[Any]) -> Array:
    """An uninitialized C-contiguous array whose address is a multiple of ``ALIGNMENT``."""
    return _aligned(np.empty, shape, dtype)


def zeros_aligned(shape: Sequence[int], dtype: str | np.dtype[Any]) -> Array:
    """A C-contiguous array of zeros whose address is a multiple of ``ALIGNMENT``, in memory not yet taken."""
    return _aligned(np.zeros, shape, dtype)


def _aligned(allocate: Callable[[int, type], Array], shape: Sequence[int], dtype: str | np.dtype[Any]) -> Array:
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    buffer = allocate(size + ALIGNMENT, np.uint8)
    offset = -buffer.ctypes.data % ALIGNMENT
    return buffer[offset : offset + size].view(kind).reshape(tuple(shape))


def aligned_copy(value: Array) -> Array:
    """A copy of ``value`` in aligned memory and native byte order."""
    copy = empty_aligned(value.shape, value.dtype.newbyteorder("="))
    copy[...] = value
    return copy


def is_ready(value: Array) -> bool:
    """Whether the step can use ``value`` where it lies; read-only memory cannot be passed to it."""
    flags = value.flags
    lies_right = flags.c_contiguous and flags.writeable and value.dtype.isnative and value.ctypes.data % ALIGNMENT == 0
    return bool(lies_right and (1 not in value.shape or value.strides == _plain_strides(value)))


def _plain_strides(value: Array) -> tuple[int, ...]:
    """The strides of an array without freedom: NumPy leaves those of single elements as they come, even negative."""
    strides = [value.itemsize]
    for extent in reversed(value.shape[1:]):
        strides.append(strides[-1] * extent)
    return tuple(reversed(strides)) if value.ndim else ()


def as_numpy(name: str, value: Any) -> Array:
    """The value as a NumPy array without a copy.

    Args:
        name: what the value is, for the error.
        value: a NumPy array, or anything with ``__dlpack__`` in main memory; a torch tensor's gradient is ignored.

    Raises:
        FqtError: FQT505 if it is neither, or some of it is masked.
    """
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.getmaskarray(value).any():
            raise FqtError(
                f"{name} is a masked array, and {int(np.ma.getmaskarray(value).sum())} values are masked",
                code="FQT505",
                hint="put numbers in their place: x.filled(0)",
            )
        return np.asarray(value.data)
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if not hasattr(value, "__dlpack__"):
        raise FqtError(
            f"{name} is of type {type(value).__name__}", code="FQT505", hint="pass a NumPy array or a CPU tensor"
        )
    try:
        return np.from_dlpack(_settled(value))
    except (BufferError, RuntimeError, TypeError, ValueError) as error:  # on another device, or a type NumPy lacks
        raise FqtError(
            f"{name} cannot be read as an array: {error}", code="FQT505", hint="pass a NumPy array or a CPU tensor"
        ) from None


def _settled(value: Any) -> Any:
    """A tensor as its memory must be read: PyTorch notes detachment, negation and conjugation beside it."""
    for method in ("detach", "resolve_conj", "resolve_neg"):
        value = getattr(value, method)() if hasattr(value, method) else value
    return value


def check_input(spec: TensorSpec, value: Any) -> Array:
    """The value as the step wants it: itself if it lies right, also where it may only be read, else an aligned copy.

    Args:
        spec: name, shape and dtype that the artifact was compiled for, and the integers that it may hold.
        value: see ``as_numpy``.

    Raises:
        FqtError: FQT505 for another shape or type, FQT506 for NaN or infinity, FQT507 for an index out of range.
    """
    array = as_numpy(spec.name, value)
    check_layout(spec, array)
    check_values(spec, array)
    operand = array if array.flags.writeable else np.asarray(_Operand(array))
    return operand if is_ready(operand) else aligned_copy(array)


class _Operand:
    """Memory that may only be read, as of a mapped file, for a call that takes no such arrays and does not write it."""

    def __init__(self, array: Array) -> None:
        self.array = array  # whose memory lives as long as this, which is the base of NumPy's view
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def check_layout(spec: TensorSpec, array: Array) -> None:
    """FQT505 unless ``array`` has the shape and dtype of ``spec``."""
    check_layout_of(spec, array.shape, array.dtype.name)


def check_layout_of(spec: TensorSpec, shape: tuple[int, ...], dtype: str) -> None:
    """FQT505 unless ``shape`` and ``dtype`` are those of ``spec``."""
    got, expected = _describe(shape, dtype), _describe(spec.shape, spec.dtype)
    if got == expected:
        return
    hint = None
    if shape[1:] == spec.shape[1:] and len(shape) == len(spec.shape) > 0 and shape[0] != spec.shape[0]:
        hint = (
            f"the step is compiled for batches of {spec.shape[0]}: DataLoader(..., drop_last=True) leaves out the "
            "last, smaller one; example_inputs=[batch, last batch], or --batch 128,16, compiles for both"
        )
    elif shape == spec.shape:
        hint = f"convert it with .astype({spec.dtype!r})"
    raise FqtError(f"{spec.name} is {got}, expected {expected}", code="FQT505", hint=hint)


def check_values(spec: TensorSpec, array: Array) -> None:
    """FQT506 for NaN or infinity in floats, FQT507 for integers that ``spec`` rules out; both name the first."""
    # A sum is one pass without a temporary array; it is finite unless a value is not, or it overflows.
    if array.dtype.kind == "f" and not np.isfinite(_sum(array)):
        bad = np.flatnonzero(~np.isfinite(array))
        if bad.size:
            where = _position(array, int(bad[0]))
            raise FqtError(f"{spec.name}{where} is {array.flat[bad[0]]}; {bad.size} such values", code="FQT506")
    if not isinstance(spec, InputSpec) or spec.values is None or not array.size:
        return
    labels = spec.role == "target"
    if spec.columns:
        low, high = (np.array([getattr(own, side) for own in spec.columns]) for side in ("low", "high"))
        ignored = np.array([own.low if own.ignore_index is None else own.ignore_index for own in spec.columns])
        bad = np.flatnonzero(((array < low) | (array >= high)) & (array != ignored))
        if bad.size:
            _refuse_index(spec.name, array, int(bad[0]), spec.columns[int(bad[0]) % len(spec.columns)], labels=labels)
    elif array.min() < spec.values.low or array.max() >= spec.values.high:
        _check_range(spec.name, array, spec.values, labels=labels)


def _check_range(name: str, array: Array, values: IndexRange, *, labels: bool) -> None:
    wrong = (array < values.low) | (array >= values.high)
    if values.ignore_index is not None:
        wrong &= array != values.ignore_index
    bad = np.flatnonzero(wrong)
    if bad.size:
        _refuse_index(name, array, int(bad[0]), values, labels=labels)


def _refuse_index(name: str, array: Array, place: int, values: IndexRange, *, labels: bool) -> NoReturn:
    """FQT507 for the element at ``place``, which is none of ``values``."""
    also = "" if values.ignore_index is None else f", or are {values.ignore_index}, which is left out"
    hint = "number the classes from 0" if labels else "the model looks them up in a table of that size"
    raise FqtError(
        f"{name}{_position(array, place)} is {array.flat[place]}; "
        f"{'labels' if labels else 'indices'} go from {values.low} to {values.high - 1}{also}",
        code="FQT507",
        hint=hint if values.low == 0 else None,
    )


def check_no_nan(name: str, array: Array) -> None:
    """FQT506 for NaN in an array of the state; infinity may be meant, as in an attention mask."""
    if array.dtype.kind == "f" and np.isnan(_sum(array)) and np.isnan(array).any():
        raise FqtError(
            f"{name} holds {int(np.isnan(array).sum())} values that are NaN",
            code="FQT506",
            hint="training has diverged: lower the learning rate, and go on from an older checkpoint",
        )


def _sum(array: Array) -> Any:
    with np.errstate(over="ignore", invalid="ignore"):
        return array.sum()


def _position(array: Array, flat: int) -> str:
    return f"[{', '.join(str(i) for i in np.unravel_index(flat, array.shape))}]" if array.ndim else ""


def _describe(shape: Sequence[int], dtype: str) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"
