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
from fqt_deploy.runtime.artifact import BUNDLED_RUNTIME, RUNTIME_LIBRARY
from fqt_deploy.runtime.threads import configure_threads

Array = NDArray[Any]

_VIRTUAL_MACHINE = "ffi.Module.load_from_bytes.relax.VMExecutable"  # a function that the runtime library registers
_CPU, _POOLED = 1, 2  # DLPack's device type; the virtual machine's allocator that keeps freed blocks


class Library:
    """The functions of one ``step.so``.

    Args:
        path: the shared library in its artifact, whose digests have been checked.

    Raises:
        FqtError: FQT509 if TVM's runtime library is missing, FQT502 if ``path`` cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        ffi = _load_runtime(path.absolute().parent / BUNDLED_RUNTIME)
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


def _load_runtime(bundled: Path) -> ModuleType:
    """Make TVM's runtime functions known to ``tvm_ffi``; ``tvm`` itself would load the compiler."""
    configure_threads()
    ffi = _import_tvm_ffi()
    # A second copy in one process would register every function again, which TVM refuses.
    if ffi.get_global_func(_VIRTUAL_MACHINE, allow_missing=True) is not None:
        return ffi
    candidates = [*_installed_runtime(), bundled]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise FqtError(
            f"{RUNTIME_LIBRARY} is missing: {bundled} does not exist, and apache-tvm is not installed",
            code="FQT509",
            hint="compile the model again: artifacts bring the library along",
        )
    try:
        ctypes.CDLL(str(found), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise FqtError(
            f"{found} cannot be loaded: {error}", code="FQT509", hint="install the apache-tvm-ffi that it was built with"
        ) from None
    return ffi


def _installed_runtime() -> list[Path]:
    """The library of the package ``apache-tvm``, where that is installed: the compiler in this process uses it too."""
    package = importlib.util.find_spec("tvm")
    folders = package.submodule_search_locations if package is not None else None
    return [Path(folder) / "lib" / RUNTIME_LIBRARY for folder in folders or ()]


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
