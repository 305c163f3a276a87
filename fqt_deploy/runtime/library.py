"""Load and call a compiled step with TVM's runtime library alone: no compiler, no PyTorch."""

from __future__ import annotations

import copy
import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import function_name
from fqt_deploy.runtime.artifact import BUNDLED_RUNTIME, CUDA_RUNTIME_LIBRARY, RUNTIME_LIBRARY, Build
from fqt_deploy.runtime.calls import call
from fqt_deploy.runtime.channel_codes import ChannelCodes
from fqt_deploy.runtime.exchange import Exchange, exchanging, register_exchange
from fqt_deploy.runtime.host_memory import HostMemory
from fqt_deploy.runtime.threads import configure_threads

Array = NDArray[Any]

_LIBRARIES = (
    (RUNTIME_LIBRARY, "ffi.Module.load_from_bytes.relax.VMExecutable"),
    (CUDA_RUNTIME_LIBRARY, "device_api.cuda"),
)
"""TVM's libraries, each with a function that it registers."""
_BUILDS: dict[str, list[tuple[int, int]]] = {}
"""Device and file number of each library that a path has named in this process."""
_CPU, _POOLED = 1, 2  # DLPack's device type; the virtual machine's allocator that keeps freed blocks


class Library(HostMemory):
    """The functions of one ``step.so``.

    Args:
        path: the shared library in its artifact, whose digests have been checked.

    Attributes:
        exchange: how a step that is compiled for several processes exchanges gradients; None in a process alone.

    Raises:
        FqtError: FQT509 if TVM's runtime library is missing, FQT502 if ``path`` cannot be loaded.
    """

    exchange: Exchange | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.build = Build(path.absolute().parent)
        self._ffi = load_runtime((path.absolute().parent / BUNDLED_RUNTIME).parent)
        self._from_dlpack = self._ffi.from_dlpack
        self._machine = load_machine(self._ffi, path, (_CPU, 0, _POOLED))

    def timed(self) -> tuple[Library, Callable[..., None], Callable[[], int]]:
        """The same functions in a virtual machine of their own that notes when each kernel begins and ends.

        Returns:
            The functions; ``start(address, capacity)``, which gives the calls an array of 64-bit integers, three for
            each: a digest of the symbol, nanoseconds at its begin and end; and ``take()``, which returns how many calls
            there were since the last time.

        Raises:
            FqtError: FQT503 if the library was compiled by an earlier version, which had no clock.
        """
        module = self._ffi.load_module(spelling(self.path))
        try:
            watch, start, take = (module.get_function(f"clock_{n}", True) for n in ("watch", "start", "take"))
        except AttributeError:
            raise FqtError(
                f"{self.path} has no clock: an earlier version compiled it", code="FQT503", hint="compile it again"
            ) from None
        other = copy.copy(self)
        other._machine = load_machine(self._ffi, self.path, (_CPU, 0, _POOLED))
        other._machine["set_instrument"](watch)
        return other, start, take

    def channel_codes(self) -> ChannelCodes:
        """The functions that write and read codes of gradients.

        Raises:
            FqtError: FQT503 if the library was compiled without them.
        """
        module = self._ffi.load_module(spelling(self.path))
        try:
            return ChannelCodes(*(module.get_function(f"codes_{name}", True) for name in ("encode", "decode")))
        except AttributeError:
            raise FqtError(
                f"{self.path} has no codes: an earlier version compiled it", code="FQT503", hint="compile it again"
            ) from None

    def train_step(self, *arrays: Array, variant: int = 0) -> tuple[float, Array]:
        """Run one step on ``*batch, seed, lr, *state``; the state is changed in place.

        Args:
            *arrays: in the manifest's order, C-contiguous and aligned to 64 bytes.
            variant: which of the manifest's variants they are of.

        Returns:
            The loss, and the logits, which share memory with nothing else.
        """
        loss, logits = self._run(function_name("train_step", variant), arrays)
        return float(loss), logits

    def predict(self, *arrays: Array, variant: int = 0) -> Array:
        """Logits of ``*model_inputs, *predict_state``; arguments as for ``train_step``."""
        (logits,) = self._run(function_name("predict", variant), arrays)
        return logits

    def _run(self, name: str, arrays: tuple[Array, ...]) -> list[Array]:
        """The results of the library's function ``name`` for ``arrays``.

        Raises:
            FqtError: FQT502 if it takes arrays of other shapes or types; it checks all before it computes anything.
        """
        try:
            return cast("list[Array]", call(_call_owned, self._machine, name, self._from_dlpack, arrays, self.exchange))
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # what tvm_ffi raises, by kind of misfit
            raise FqtError(
                f"{self.path} does not take what the manifest says: {str(error).strip().splitlines()[-1]}",
                code="FQT502",
                hint="compile the model again",
            ) from None


def _call_owned(
    machine: Any, name: str, from_dlpack: Any, arrays: tuple[Array, ...], exchange: Exchange | None
) -> list[Array]:
    """The results of the function ``name``, which is looked up here: that, too, is a call of compiled code."""
    with exchanging(exchange):
        result = machine[name](*map(from_dlpack, arrays))
    return [_owned(tensor) for tensor in (result if isinstance(result, (tuple, list, Sequence)) else (result,))]


def _owned(tensor: Any) -> Array:
    """A copy of the tensor that is ours: the virtual machine's pool may use the tensor's memory again."""
    return np.array(np.from_dlpack(tensor))


def load_machine(ffi: ModuleType, path: Path, devices: tuple[int, ...]) -> Any:
    """The virtual machine of the library ``path``: its functions by name.

    Args:
        ffi: the module from ``load_runtime``.
        path: the shared library.
        devices: type, number and allocator of each device; the CPU last.

    Raises:
        FqtError: FQT502 if the library cannot be loaded.
    """
    try:
        machine = ffi.load_module(spelling(path))["vm_load_executable"]()
        machine["vm_initialization"](*devices)
        for name in ("train_step", "predict"):
            machine[name]
    except (RuntimeError, OSError, AttributeError, ValueError) as error:  # what tvm_ffi raises, by kind of damage
        raise FqtError(
            f"{path} cannot be loaded: {str(error).strip().splitlines()[-1]}",
            code="FQT502",
            hint="compile the model again, for this machine",
        ) from None
    return machine


def spelling(path: Path) -> str:
    """A name of the file ``path`` that the dynamic linker has not yet seen for another file.

    It knows libraries by the names they were loaded under: without this it would take a library that was compiled again
    for the one that is still loaded.
    """
    real = os.path.realpath(path)
    status = os.stat(real)
    builds = _BUILDS.setdefault(real, [])
    if (status.st_dev, status.st_ino) not in builds:
        builds.append((status.st_dev, status.st_ino))
    folder, name = os.path.split(real)
    number = builds.index((status.st_dev, status.st_ino))
    return f"{folder}/" + "".join("./" if digit == "1" else "/" for digit in f"{number:b}") * (number > 0) + name


def load_runtime(bundled: Path, *, cuda: bool = False) -> ModuleType:
    """Make TVM's runtime functions known to ``tvm_ffi``; ``tvm`` itself would load the compiler.

    Args:
        bundled: folder of the libraries that the artifact brings along.
        cuda: whether those for GPUs are needed too; NVIDIA's own must have been loaded.

    Raises:
        FqtError: FQT509 if a library is missing or cannot be loaded.
    """
    configure_threads()
    ffi = _import_tvm_ffi()
    register_exchange(ffi)
    for name, registered in _LIBRARIES[: 2 if cuda else 1]:
        # A second copy in one process would register every function again, which TVM refuses.
        if ffi.get_global_func(registered, allow_missing=True) is None:
            _load_library(name, bundled)
    return ffi


def _load_library(name: str, bundled: Path) -> None:
    candidates = [*(folder / name for folder in _installed_runtime()), bundled / name]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise FqtError(
            f"{name} is missing: {bundled / name} does not exist, and apache-tvm is not installed",
            code="FQT509",
            hint="compile the model again: artifacts bring the library along",
        )
    try:
        ctypes.CDLL(str(found), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise FqtError(
            f"{found} cannot be loaded: {error}",
            code="FQT509",
            hint="install the apache-tvm-ffi that it was built with",
        ) from None


def _installed_runtime() -> list[Path]:
    """The libraries of the package ``apache-tvm``, if installed: the compiler in this process uses them too."""
    package = importlib.util.find_spec("tvm")
    folders = package.submodule_search_locations if package is not None else None
    return [Path(folder) / "lib" for folder in folders or ()]


def _import_tvm_ffi() -> ModuleType:
    """The module ``tvm_ffi`` without PyTorch: it imports torch, if installed, for a converter not needed here."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # makes ``import torch`` an ImportError
    try:
        import tvm_ffi
    except ImportError as error:
        raise FqtError(
            f"tvm_ffi cannot be imported: {error}", code="FQT509", hint="pip install apache-tvm-ffi"
        ) from None
    finally:
        if hidden:
            del sys.modules["torch"]
    module: ModuleType = tvm_ffi
    return module
