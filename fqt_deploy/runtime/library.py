"""Loads compiled steps with TVM's runtime alone: no compiler, no PyTorch."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import Any

import tvm_ffi

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.runtime.threads import configure_threads

_CPU = 1
_POOLED_ALLOCATOR = 2


class Library:
    """The functions of one ``step.so``, ready to run on the CPU."""

    def __init__(self, path: Path) -> None:
        """Load ``path`` and start its virtual machine; FQT502 if it cannot be loaded."""
        _load_runtime()
        try:
            executable = tvm_ffi.load_module(str(path))
            self._machine: Any = executable["vm_load_executable"]()
            self._machine["vm_initialization"](_CPU, 0, _POOLED_ALLOCATOR)
        except (RuntimeError, AttributeError, OSError, ValueError) as error:
            raise FqtError(f"cannot load {path}: {str(error).splitlines()[0]}", code="FQT502") from None
        self._train_step = self._machine["train_step"]
        self._predict = self._machine["predict"]

    def train_step(self, *arrays: Any) -> tuple[Any, Any]:
        """Run one step; state arrays are updated in place. Returns loss and logits."""
        loss, logits = self._train_step(*arrays)
        return loss, logits

    def predict(self, *arrays: Any) -> Any:
        """Run the evaluation graph. Returns the logits."""
        return self._predict(*arrays)


@functools.cache
def _load_runtime() -> None:
    """Load ``libtvm_runtime`` from the installed package without importing that package."""
    configure_threads()
    spec = importlib.util.find_spec("tvm")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        library = Path(folder) / "lib" / "libtvm_runtime.so"
        if library.is_file():
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
            return
    raise FqtError("libtvm_runtime.so is missing", code="FQT509", hint="pip install apache-tvm")
