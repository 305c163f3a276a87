"""NVIDIA's runtime library through ctypes: the device, its memory, one stream, graphs."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.runtime.architecture import can_run

Array = NDArray[Any]

RUNTIME_LIBRARY = "libcudart.so.13"
MINIMUM_DRIVER = 13000
"""Oldest driver that the runtime library works with, as the driver counts: 1000 times the CUDA version."""

_TO_DEVICE, _TO_HOST, _ON_DEVICE = 1, 2, 3  # cudaMemcpyKind
_MAJOR, _MINOR = 75, 76  # cudaDevAttrComputeCapability
_NON_BLOCKING = 1  # a stream that does not wait for the default stream
_RELAXED = 2  # capture mode: memory may be allocated meanwhile
_EXTERNAL = 1  # cudaEventRecordExternal: a graph's event can be read after it has run
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


class CudaRuntime:
    """The first GPU of this machine and a stream on it.

    Args:
        architectures: that the artifact was compiled for, oldest first.
        ptx: whether it also holds PTX for later ones.

    Attributes:
        capability: major and minor version of the device.
        stream: handle of the stream.

    Raises:
        FqtError: FQT403 if there is no driver or no device, FQT405 if they cannot run the artifact, FQT509 if the
            runtime library is missing.
    """

    def __init__(self, architectures: Sequence[str], *, ptx: bool = True) -> None:
        if not _load("libcuda.so.1"):
            raise FqtError(
                "there is no NVIDIA driver on this machine: libcuda.so.1 is missing",
                code="FQT403",
                hint="install one, or compile for the CPU: fqt-compile MODEL.py --target cpu",
            )
        self._library = _load_runtime_library()
        self._check_driver()
        self.capability = self._check_device(architectures, ptx)
        handle = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(handle), ctypes.c_uint(_NON_BLOCKING))
        self.stream = int(handle.value or 0)

    def copy_in(self, address: int, array: Array) -> None:
        """Overwrite device memory with a contiguous host array, and wait."""
        self._copy(address, array.ctypes.data, array.nbytes, _TO_DEVICE)
        self.synchronize()

    def copy_out(self, array: Array, address: int) -> None:
        """Overwrite a contiguous host array with device memory, and wait."""
        self._copy(array.ctypes.data, address, array.nbytes, _TO_HOST)
        self.synchronize()

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy ``size`` bytes on the device, in the order of the stream."""
        self._copy(target, source, size, _ON_DEVICE)

    def synchronize(self) -> None:
        """Wait for all work on the stream."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(self.stream))

    def capture(self, work: Callable[[], None]) -> int:
        """Record what ``work`` puts on the stream, without running it; returns the executable graph."""
        graph, executable, stream = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p(self.stream)
        self._call("cudaStreamBeginCapture", stream, ctypes.c_int(_RELAXED))
        try:
            work()
        finally:
            self._call("cudaStreamEndCapture", stream, ctypes.byref(graph))
        self._call("cudaGraphInstantiate", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        self._call("cudaGraphDestroy", graph)
        return int(executable.value or 0)

    def event(self) -> int:
        """A new event, which notes when the stream comes to it."""
        handle = ctypes.c_void_p()
        self._call("cudaEventCreate", ctypes.byref(handle))
        return int(handle.value or 0)

    def record(self, event: int, *, in_graph: bool) -> None:
        """Put the event on the stream; of one in a recorded graph the latest run counts."""
        flags = ctypes.c_uint(_EXTERNAL if in_graph else 0)
        self._call("cudaEventRecordWithFlags", ctypes.c_void_p(event), ctypes.c_void_p(self.stream), flags)

    def between(self, first: int, second: int) -> int:
        """Nanoseconds from one event to another that have both passed."""
        milliseconds = ctypes.c_float()
        self._call("cudaEventElapsedTime", ctypes.byref(milliseconds), ctypes.c_void_p(first), ctypes.c_void_p(second))
        return round(1e6 * milliseconds.value)

    def launch(self, graph: int) -> None:
        """Run a recorded graph on the stream."""
        self._call("cudaGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(self.stream))

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Within this context TVM's error about memory is an ``FqtError``; others are bugs and stay as they are."""
        try:
            yield
        except RuntimeError as error:
            if "out of memory" not in str(error) and "MemoryAllocation" not in str(error):
                raise
            raise self._too_small() from None

    def _too_small(self) -> FqtError:
        available, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._library.cudaMemGetInfo(ctypes.byref(available), ctypes.byref(total))
        return FqtError(
            f"the GPU's memory is full: {available.value >> 20} of {total.value >> 20} MiB are free",
            code="FQT406",
            hint="compile for a smaller --batch, or end other processes on the GPU",
        )

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        stream = ctypes.c_void_p(self.stream)
        pointers = ctypes.c_void_p(target), ctypes.c_void_p(source)
        self._call("cudaMemcpyAsync", *pointers, ctypes.c_size_t(size), ctypes.c_int(kind), stream)

    def _check_driver(self) -> None:
        version = ctypes.c_int()
        self._library.cudaDriverGetVersion(ctypes.byref(version))
        if version.value < MINIMUM_DRIVER:
            raise FqtError(
                f"the NVIDIA driver supports CUDA {_version(version.value)}; the step needs {_version(MINIMUM_DRIVER)}",
                code="FQT405",
                hint="install driver 580 or later",
            )

    def _check_device(self, architectures: Sequence[str], ptx: bool) -> tuple[int, int]:
        count = ctypes.c_int()
        if self._library.cudaGetDeviceCount(ctypes.byref(count)) or count.value < 1:
            raise FqtError(
                "the NVIDIA driver finds no device",
                code="FQT403",
                hint="look at nvidia-smi and CUDA_VISIBLE_DEVICES",
            )
        capability = self._attribute(_MAJOR), self._attribute(_MINOR)
        if not can_run(architectures, capability, ptx=ptx):
            own = f"sm_{capability[0]}{capability[1]}"
            raise FqtError(
                f"the artifact is compiled for {', '.join(architectures)}; this device is {own}",
                code="FQT405",
                hint=f"compile again with --arch {','.join((*architectures, own))}",
            )
        return capability

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._call("cudaDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(number), ctypes.c_int(0))
        return int(value.value)

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code == _OUT_OF_MEMORY:
            raise self._too_small()
        if code:
            describe = self._library.cudaGetErrorString
            describe.restype = ctypes.c_char_p
            raise RuntimeError(f"{function}: {(describe(code) or b'').decode()} ({code})")


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _load_runtime_library() -> ctypes.CDLL:
    package = importlib.util.find_spec("nvidia")
    folders = package.submodule_search_locations if package is not None else None
    carried = os.environ.get("FQT_RUNTIME_LIBRARIES")
    candidates = [Path(carried) / RUNTIME_LIBRARY] if carried else []
    candidates += [Path(folder) / "cu13" / "lib" / RUNTIME_LIBRARY for folder in folders or ()]
    for name in (RUNTIME_LIBRARY, *map(str, candidates)):  # first the one that another library has loaded
        if library := _load(name):
            return library
    raise FqtError(f"{RUNTIME_LIBRARY} is missing", code="FQT509", hint="pip install 'nvidia-cuda-runtime>=13,<14'")


def _load(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
    except OSError:
        return None
