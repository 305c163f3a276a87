"""Load and call a compiled step with TVM's runtime library alone: no compiler, no PyTorch."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.runtime.threads import configure_threads

Array = NDArray[Any]

RUNTIME_LIBRARY = "libtvm_runtime.so"
_CPU, _POOLED = 1, 2  # DLPack's device type; the virtual machine's allocator that keeps freed blocks


class Library:
    """The functions of one ``step.so``.

    Args:
        path: the shared library.

    Raises:
        FqtError: FQT509 if TVM's runtime library is missing, FQT502 if ``path`` cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        ffi = _load_runtime()
        self._from_dlpack = ffi.from_dlpack
        try:
            executable = ffi.load_module(str(path.resolve()))
            self._machine = executable["vm_load_executable"]()
            self._machine["vm_initialization"](_CPU, 0, _POOLED)
            self._train_step = self._machine["train_step"]
            self._predict = self._machine["predict"]
        except (RuntimeError, OSError, AttributeError, ValueError) as error:  # what tvm_ffi raises, by kind of damage
            raise FqtError(
                f"{path} cannot be loaded: {str(error).strip().splitlines()[-1]}",
                code="FQT502",
                hint="compile the model again, for this machine",
            ) from None

    def train_step(self, *arrays: Array) -> tuple[Array, Array]:
        """One step on ``x, y, seed, lr, *state``; the state is changed in place.

        Args:
            *arrays: in the manifest's order, C-contiguous and aligned to 64 bytes.

        Returns:
            The loss ``[]`` and the logits; they share memory with nothing else.
        """
        loss, logits = self._train_step(*map(self._from_dlpack, arrays))
        return _owned(loss), _owned(logits)

    def predict(self, *arrays: Array) -> Array:
        """Logits of ``x, *predict_state``; arguments as for ``train_step``."""
        return _owned(self._predict(*map(self._from_dlpack, arrays)))


def _owned(tensor: Any) -> Array:
    """A copy: the virtual machine's pool may use the tensor's memory again."""
    return np.array(np.from_dlpack(tensor))


def _load_runtime() -> ModuleType:
    """Make TVM's runtime functions known to ``tvm_ffi``; ``tvm`` itself would load the compiler."""
    configure_threads()
    package = importlib.util.find_spec("tvm")
    folders = package.submodule_search_locations if package is not None else None
    candidates = [Path(folder) / "lib" / RUNTIME_LIBRARY for folder in folders or ()]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise FqtError(f"{RUNTIME_LIBRARY} is missing", code="FQT509", hint="pip install 'apache-tvm>=0.27,<0.28'")
    ffi = _import_tvm_ffi()
    try:
        ctypes.CDLL(str(found), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise FqtError(f"{found} cannot be loaded: {error}", code="FQT502", hint="install apache-tvm again") from None
    return ffi


def _import_tvm_ffi() -> ModuleType:
    """``tvm_ffi`` without PyTorch: it imports torch, where that is installed, for a converter that is not needed here."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # makes ``import torch`` an ImportError
    try:
        import tvm_ffi
    except ImportError as error:
        raise FqtError(f"tvm_ffi cannot be imported: {error}", code="FQT509", hint="pip install apache-tvm-ffi") from None
    finally:
        if hidden:
            del sys.modules["torch"]
    module: ModuleType = tvm_ffi
    return module
