"""A compiled step on a GPU: its state lives there, only the batch goes in and the loss comes out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest, TensorSpec
from fqt_deploy.runtime.arrays import check_input, check_layout_of
from fqt_deploy.runtime.artifact import BUNDLED_RUNTIME, Build
from fqt_deploy.runtime.cuda_runtime import CudaRuntime
from fqt_deploy.runtime.library import load_machine, load_runtime

Array = NDArray[Any]

_CUDA, _CPU, _POOLED = 2, 1, 2  # DLPack's device types; the virtual machine's allocator that keeps freed blocks
ALIGNMENT = 16
"""Number of bytes that a kernel reads at once: an input that begins elsewhere, as part of a larger tensor, is copied.
"""
_STREAM, _COPIES = 1 << 28, 5
"""Bytes of a copy that measures the device's memory, and how often it is copied."""
GRAPHS = 8
"""Upper bound of recorded steps, one for each pair of addresses that batches come from; more batches are copied to a
fixed place.
"""


class CudaLibrary:
    """The functions of one ``step.so`` with kernels for a GPU.

    The first step launches its kernels one by one, which also allocates what they need. Later ones are recorded as a
    CUDA graph and launched as a whole; with ``FQT_CUDA_GRAPH=0`` they are not.

    Args:
        path: the shared library.
        manifest: what it was compiled for.

    Raises:
        FqtError: FQT403, FQT405, FQT509: see ``CudaRuntime``; FQT502 if ``path`` cannot be loaded.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        if manifest.buckets:
            raise FqtError("a step for a GPU is for one shape of batches", code="FQT502", hint="compile it again")
        self.path = path
        self.build = Build(path.parent)
        self._cuda = CudaRuntime(manifest.target["mcpu"].split(","), ptx=manifest.target.get("ptx") != "none")
        self._ffi = load_runtime((path.absolute().parent / BUNDLED_RUNTIME).parent, cuda=True)
        self._device = self._ffi.device("cuda", 0)
        self._allocate = self._ffi.get_global_func("runtime.TVMTensorAllocWithScope")
        machine = self._machine()
        self._train_step, self._predict = machine["train_step"], machine["predict"]
        self._inputs = {spec.name: self._empty(spec) for spec in manifest.inputs}
        self._loss = self._empty(TensorSpec("loss", (), "float32"))
        self._logits = self._empty(manifest.logits)
        self._records = _records()
        self._warm = False
        self._module: Any = None
        self._graphs: dict[tuple[int, ...], int] = {}

    def timed(self) -> tuple[CudaLibrary, Callable[[int, int], None], Callable[[], int]]:
        """The same functions with events around their kernels, and what ``Library.timed`` returns besides."""
        from fqt_deploy.runtime.cuda_clock import TimedCudaLibrary

        timed = TimedCudaLibrary(self)
        return timed, timed.events.start, timed.events.take

    def bytes_per_second(self) -> float:
        """Bytes a second, read and written, of copies on the device that are far larger than its caches."""
        source, target = (self._empty(TensorSpec("", (_STREAM,), "int8")) for _ in range(2))
        begin, end = self._cuda.event(), self._cuda.event()
        times = []
        for _ in range(_COPIES):
            self._cuda.record(begin, in_graph=False)
            self._cuda.copy(target.data_ptr(), source.data_ptr(), _STREAM)
            self._cuda.record(end, in_graph=False)
            self._cuda.synchronize()
            times.append(self._cuda.between(begin, end))
        return 2 * _STREAM / (min(times) / 1e9)

    @property
    def device(self) -> str:
        """The device in words."""
        return "NVIDIA GPU of compute capability {}.{}".format(*self._cuda.capability)

    def place(self, array: Array) -> Any:
        """A copy of ``array`` on the device, that the step can read and write."""
        tensor = self._empty(TensorSpec("", array.shape, str(array.dtype)))
        self.assign(tensor, array)
        return tensor

    def fetch(self, tensor: Any) -> Array:
        """A copy of a device tensor on the host."""
        array = np.empty(tuple(tensor.shape), dtype=str(tensor.dtype))
        self._cuda.copy_out(array, tensor.data_ptr())
        return array

    def assign(self, tensor: Any, value: Any) -> None:
        """Overwrite the device tensor ``tensor`` with ``value``."""
        array = np.ascontiguousarray(np.broadcast_to(value, tuple(tensor.shape)), dtype=str(tensor.dtype))
        self._cuda.copy_in(tensor.data_ptr(), array)

    def batch(self, spec: TensorSpec, value: Any) -> Any:
        """An input on the device: an aligned CUDA tensor itself, the values of anything else, of arrays after a check.

        Args:
            spec: name, shape and dtype.
            value: a NumPy array, a CPU tensor, or a tensor on the first GPU with ``__dlpack__``; the values of the
                latter are not checked: that would wait for the device.

        Raises:
            FqtError: FQT505 to FQT507, see ``check_input``.
        """
        if not is_on_gpu(value):
            target = self._inputs[spec.name]
            self._cuda.copy_in(target.data_ptr(), check_input(spec, value))
            return target
        tensor = self._imported(spec, value)
        check_layout_of(spec, tuple(tensor.shape), str(tensor.dtype))
        if tensor.data_ptr() % ALIGNMENT == 0:
            return tensor
        target = self._inputs[spec.name]
        self._cuda.copy(target.data_ptr(), tensor.data_ptr(), _size(tensor))
        return target

    def train_step(self, *operands: Any, variant: int = 0) -> tuple[float, Any]:
        """Run one step; returns the loss, and the logits, which the next step overwrites.

        Args:
            *operands: the arrays of a batch from ``batch``, then seed, learning rates and the state in the manifest's
                order, from ``place``.
            variant: 0: steps for GPUs are for one shape of batches.
        """
        assert variant == 0
        with self._cuda.errors(), self._ffi.use_raw_stream(self._device, self._cuda.stream):
            self._run(operands)
        return float(self.fetch(self._loss)), self._logits

    def predict(self, *operands: Any, variant: int = 0) -> Array:
        """The logits of one batch, from its arrays and the state that a prediction takes."""
        assert variant == 0
        with self._cuda.errors(), self._ffi.use_raw_stream(self._device, self._cuda.stream):
            logits = self._predict(*operands)
            return self.fetch(logits)

    def run_kernel(self, symbol: str, *operands: Any) -> None:
        """Run one kernel of ``manifest.kernels`` by itself, on operands and results from ``place``; to check it."""
        if self._module is None:
            self._module = self._ffi.load_module(str(self.path.resolve()))
        with self._cuda.errors(), self._ffi.use_raw_stream(self._device, self._cuda.stream):
            self._module.get_function(symbol, query_imports=True)(*operands)
        self._cuda.synchronize()

    def _machine(self) -> Any:
        """A virtual machine with the functions of the library."""
        with self._cuda.errors():
            return load_machine(self._ffi, self.path, (_CUDA, 0, _POOLED, _CPU, 0, _POOLED))

    def _run(self, operands: tuple[Any, ...]) -> None:
        """Put one step on the stream, one by one or recorded."""
        if not (self._records and self._warm):
            self._run_now(operands)
            self._warm = True
            return
        operands = self._recorded_inputs(operands)
        key = tuple(operand.data_ptr() for operand in operands)
        if key not in self._graphs:
            self._graphs[key] = self._record(key, operands)
        self._replay(key)

    def _run_now(self, operands: tuple[Any, ...]) -> None:
        self._launch_all(operands)

    def _record(self, _: tuple[int, ...], operands: tuple[Any, ...]) -> int:
        return self._cuda.capture(lambda: self._launch_all(operands))

    def _replay(self, key: tuple[int, ...]) -> None:
        self._cuda.launch(self._graphs[key])

    def _launch_all(self, operands: Sequence[Any]) -> None:
        """Put all kernels on the stream; results are copied out of memory that the virtual machine uses again."""
        loss, logits = self._train_step(*operands)
        for target, source in ((self._loss, loss), (self._logits, logits)):
            if (tuple(source.shape), str(source.dtype)) != (tuple(target.shape), str(target.dtype)):
                raise FqtError(f"{self.path} computes other results than the manifest says", code="FQT502")
            self._cuda.copy(target.data_ptr(), source.data_ptr(), _size(source))

    def _recorded_inputs(self, operands: tuple[Any, ...]) -> tuple[Any, ...]:
        """The operands with inputs where a graph reads them: at their own place while there are few of those."""
        count = len(self._inputs)
        batch = tuple(operand.data_ptr() for operand in operands[:count])
        if len(self._graphs) < GRAPHS - 1 or any(key[:count] == batch for key in self._graphs):
            return operands
        targets = tuple(self._inputs.values())
        for target, source in zip(targets, operands[:count], strict=True):
            if target.data_ptr() != source.data_ptr():
                self._cuda.copy(target.data_ptr(), source.data_ptr(), _size(source))
        return (*targets, *operands[count:])

    def _imported(self, spec: TensorSpec, value: Any) -> Any:
        """A view of another library's tensor; work on it there comes before the step's."""
        value = value.detach() if hasattr(value, "detach") else value
        device = value.__dlpack_device__()
        if int(device[1]) != 0:
            raise FqtError(f"{spec.name} is on GPU {int(device[1])}; the step runs on GPU 0", code="FQT505")
        tensor = self._ffi.from_dlpack(_Exported(value, self._cuda.stream))
        if not tensor.is_contiguous():
            raise FqtError(f"{spec.name} is not contiguous", code="FQT505", hint="pass x.contiguous()")
        return tensor

    def _empty(self, spec: TensorSpec) -> Any:
        with self._cuda.errors():
            shape, dtype = self._ffi.Shape(tuple(spec.shape)), self._ffi.dtype(spec.dtype)
            return self._allocate(shape, dtype, self._device, None)


class _Exported:
    """A tensor whose owner is told on which stream it will be read."""

    def __init__(self, value: Any, stream: int) -> None:
        self._value, self._stream = value, stream

    def __dlpack__(self, **_: Any) -> Any:
        return self._value.__dlpack__(stream=self._stream)

    def __dlpack_device__(self) -> Any:
        return self._value.__dlpack_device__()


def is_on_gpu(value: Any) -> bool:
    """Whether ``value`` is a tensor in the memory of a CUDA device."""
    return hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) == _CUDA


def _size(tensor: Any) -> int:
    return int(np.prod(tuple(tensor.shape), dtype=np.int64)) * np.dtype(str(tensor.dtype)).itemsize


def _records() -> bool:
    """Whether steps are recorded as graphs; FQT202 for a wrong value of ``FQT_CUDA_GRAPH``."""
    given = os.environ.get("FQT_CUDA_GRAPH", "1")
    if given not in ("0", "1"):
        raise FqtError(f"FQT_CUDA_GRAPH is {given!r}; it must be 0 or 1", code="FQT202")
    return given == "1"
