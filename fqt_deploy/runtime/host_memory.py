"""The memory of a step that runs on the CPU: its operands are NumPy arrays."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from fqt_deploy.core.manifest import TensorSpec
from fqt_deploy.runtime.arrays import aligned_copy, check_input, is_ready

Array = NDArray[Any]


class HostMemory:
    """The operands of a step as a session handles them."""

    def place(self, array: Array) -> Array:
        """The array where the step can read and write it: an aligned copy, or itself if it is aligned."""
        return array if is_ready(array) else aligned_copy(array)

    def fetch(self, operand: Array) -> Array:
        """A copy of the operand that ``place`` returned."""
        return operand.copy()

    def assign(self, operand: Array, value: Any) -> None:
        """Overwrite the operand that ``place`` returned."""
        operand[...] = value

    def batch(self, spec: TensorSpec, value: Any) -> Array:
        """The input of the step, checked by ``check_input``."""
        return check_input(spec, value)
