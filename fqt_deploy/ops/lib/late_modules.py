"""TVM's modules, and ONNX, for those who define ops: imported when something of them is used, not for a definition.

Capture and passes need shapes and references alone. Loop nests need TVM, whose import takes as long as capturing a
small model; bodies in ONNX need that.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["ir", "onnx", "te", "tirx", "tvm_ffi"]


class _OnFirstUse(ModuleType):
    """A module that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self.__name__), name)
        setattr(self, name, value)  # found without this function from now on
        return value


if TYPE_CHECKING:
    import onnx
    import tvm_ffi
    from tvm import ir, te, tirx
else:
    ir, te, tirx = map(_OnFirstUse, ("tvm.ir", "tvm.te", "tvm.tirx"))
    onnx, tvm_ffi = map(_OnFirstUse, ("onnx", "tvm_ffi"))
