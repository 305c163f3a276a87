"""A clock for the kernels of a step on a GPU: events in its stream, which recorded steps hold as well."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from fqt_deploy.runtime.cuda_library import CudaLibrary
from fqt_deploy.runtime.cuda_runtime import CudaRuntime
from fqt_deploy.runtime.digests import symbol_digest

_FIELDS = 3
_digest = lru_cache(maxsize=None)(symbol_digest)

Noted = tuple[int, int, int]
"""The digest of a kernel's symbol, the events at its begin and at its end."""


class KernelEvents:
    """Puts events around the kernels that a virtual machine launches, and reads them after the step.

    Args:
        cuda: the device and its stream.
    """

    def __init__(self, cuda: CudaRuntime) -> None:
        self._cuda = cuda
        self._origin, self._began = cuda.event(), 0
        self._into: list[Noted] | None = None
        self._recorded = False
        self._free: list[tuple[int, int]] = []
        self._kept: list[tuple[int, int]] = []
        self._found: Any = None
        self._calls: list[Noted] = []

    def watch(self, _: Any, symbol: Any, before: Any, *__: Any) -> None:
        """To be called by the virtual machine before and after each call that it makes."""
        if self._into is None or not str(symbol).startswith("fqt_"):
            return
        if before:
            begin, end = self._pair()
            self._into.append((_digest(str(symbol)), begin, end))
            self._cuda.record(begin, in_graph=self._recorded)
        else:
            self._cuda.record(self._into[-1][2], in_graph=self._recorded)

    def begin_step(self) -> None:
        """Wait for the device, and note when the step begins on its clock and on the host's."""
        self._cuda.synchronize()
        self._began = time.monotonic_ns()
        self._cuda.record(self._origin, in_graph=False)

    def noted(self, launch: Callable[[], Any], *, recorded: bool) -> tuple[Any, list[Noted]]:
        """What ``launch`` returns, and its kernels. Those of a recorded step have events of their own for good."""
        self._into, self._recorded = [], recorded
        self._free = list(self._kept)
        try:
            result = launch()
            return result, self._into
        finally:
            self._into = None

    def runs(self, calls: list[Noted]) -> None:
        """The step that was begun runs these kernels."""
        self._calls = calls

    def start(self, address: int, capacity: int) -> None:
        """Calls go to an array of int64, as ``clock_start`` of kernel_clock.c says; 0 to write none."""
        self._calls = []
        self._found = (ctypes.c_int64 * (capacity * _FIELDS)).from_address(address) if address else None

    def take(self) -> int:
        """Write the latest step's calls; returns their number. The step must have ended."""
        count, self._calls, calls = len(self._calls), [], self._calls
        room = 0 if self._found is None else len(self._found) // _FIELDS
        for i, (digest, begin, end) in enumerate(calls[:room]):
            times = (self._began + self._cuda.between(self._origin, event) for event in (begin, end))
            self._found[i * _FIELDS : (i + 1) * _FIELDS] = [digest, *times]
        return count

    def _pair(self) -> tuple[int, int]:
        """Two events: new ones for a recorded step, else those of an earlier step."""
        if self._free and not self._recorded:
            return self._free.pop()
        pair = self._cuda.event(), self._cuda.event()
        if not self._recorded:
            self._kept.append(pair)
        return pair


class TimedCudaLibrary(CudaLibrary):
    """The functions of a library in a virtual machine of their own, whose kernels lie between events.

    Args:
        plain: the library; device memory for inputs and results is shared with it.
    """

    def __init__(self, plain: CudaLibrary) -> None:
        self.__dict__.update(vars(plain))
        self.events = KernelEvents(self._cuda)
        machine = self._machine()
        machine["set_instrument"](self._ffi.convert(self.events.watch))
        self._train_step = machine["train_step"]
        self._warm = False
        self._graphs = {}
        self._noted: dict[tuple[int, ...], list[Noted]] = {}

    def _run(self, operands: tuple[Any, ...]) -> None:
        self.events.begin_step()
        super()._run(operands)

    def _run_now(self, operands: tuple[Any, ...]) -> None:
        _, calls = self.events.noted(lambda: self._launch_all(operands), recorded=False)
        self.events.runs(calls)

    def _record(self, key: tuple[int, ...], operands: tuple[Any, ...]) -> int:
        graph, self._noted[key] = self.events.noted(
            lambda: self._cuda.capture(lambda: self._launch_all(operands)), recorded=True
        )
        return int(graph)

    def _replay(self, key: tuple[int, ...]) -> None:
        super()._replay(key)
        self.events.runs(self._noted[key])
