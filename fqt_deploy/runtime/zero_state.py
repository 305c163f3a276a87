"""State that begins as zeros is not stored: an artifact holds no bytes for moments before their first step.

Of the arrays that the manifest lists, those of the roles ``optimizer`` and ``metric`` may be absent from
``state.safetensors``; they are zeros then. No absent array is larger than the largest one that is there, so a damaged
manifest cannot ask for memory that no file accounts for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.manifest import StateSpec
from fqt_deploy.runtime.arrays import zeros_aligned
from fqt_deploy.runtime.files import Arrays

_ROLES = ("optimizer", "metric")
"""Roles of arrays that may be absent."""


def stored_state(specs: Sequence[StateSpec], state: Mapping[str, NDArray[Any]]) -> Arrays:
    """The arrays of ``state`` that a file must hold, in the order of ``specs``: all but those that may be absent."""
    largest = max((state[spec.name].nbytes for spec in specs if spec.role not in _ROLES), default=0)
    return {spec.name: state[spec.name] for spec in specs if not _may_be_absent(spec, state[spec.name], largest)}


def _may_be_absent(spec: StateSpec, array: NDArray[Any], largest: int) -> bool:
    return spec.role in _ROLES and array.nbytes <= largest and not array.tobytes().strip(b"\0")


def with_absent_zeros(specs: Sequence[StateSpec], stored: Mapping[str, NDArray[Any]]) -> Arrays:
    """The arrays of ``stored``, and zeros in aligned memory for those that may be absent."""
    largest = max((array.nbytes for array in stored.values()), default=0)
    absent = [spec for spec in specs if spec.role in _ROLES and spec.name not in stored]
    fitting = [spec for spec in absent if spec.size * np.dtype(spec.dtype).itemsize <= largest]
    return {**stored, **{spec.name: zeros_aligned(spec.shape, spec.dtype) for spec in fitting}}
