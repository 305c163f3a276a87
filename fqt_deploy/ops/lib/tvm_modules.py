"""TVM's modules for those who define ops: TVM itself is imported when a loop nest is written, not for its definition.

Capture and passes need shapes and references alone, and importing TVM takes as long as capturing a small model.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["ir", "te", "tirx", "tvm_ffi"]


class _OnFirstUse(ModuleType):
    """A module that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self.__name__), name)
        setattr(self, name, value)  # found without this function from now on
        return value


if TYPE_CHECKING:
    import tvm_ffi
    from tvm import ir, te, tirx
else:
    ir, te, tirx, tvm_ffi = map(_OnFirstUse, ("tvm.ir", "tvm.te", "tvm.tirx", "tvm_ffi"))
