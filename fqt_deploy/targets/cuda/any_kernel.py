"""The schedule of any kernel: one thread an element, a group of threads a sum."""

from __future__ import annotations

from typing import ClassVar

from tvm import tirx

from fqt_deploy.targets.cuda import generic
from fqt_deploy.targets.cuda.features import CudaFeatures
from fqt_deploy.targets.cuda.loop_nest import formulas_of


class AnyRule:
    """Schedules every function."""

    ops: ClassVar[frozenset[str]] = frozenset()

    def apply(self, function: tirx.PrimFunc, features: CudaFeatures) -> tirx.PrimFunc | None:
        """Returns the function as launches of generic kernels; see ``generic``."""
        return function.with_body(generic.emit(formulas_of(function)))
