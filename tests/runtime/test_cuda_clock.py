"""The clock of steps on a GPU, on a stand-in for NVIDIA's library: a stream that runs what was put on it, in order.

That the virtual machine calls the clock as it expects is tested with a real step, on the CPU.
"""

import re
from types import SimpleNamespace

import numpy as np
import pytest

import fqt_deploy
from fqt_deploy.core.manifest import KernelInfo
from fqt_deploy.profiling.measure import made_up_batch
from fqt_deploy.runtime import cuda_library
from fqt_deploy.runtime.cuda_clock import KernelEvents
from fqt_deploy.runtime.cuda_library import CudaLibrary
from fqt_deploy.runtime.cuda_runtime import CudaRuntime
from fqt_deploy.runtime.digests import symbol_digest
from fqt_deploy.runtime.kernel_clock import KernelClock

KERNELS = {"fqt_a": 2_000_000, "fqt_b": 1_000_000}
"""Nanoseconds that each takes."""


class Stream:
    """What of NVIDIA's library the clock calls; work takes time only when it runs, not when it is recorded."""

    def __init__(self):
        self.now, self.events, self.graphs, self.capturing = 5_000_000, [], [], None

    def __getattr__(self, name):
        if not name.startswith("cuda"):
            raise AttributeError(name)
        return getattr(self, re.sub("([A-Z])", r"_\1", name.removeprefix("cuda")).lower().removeprefix("_"))

    def put(self, work):
        self.capturing.append(work) if self.capturing is not None else work()

    def run_kernel(self, symbol):
        def work():
            self.now += KERNELS[symbol]

        self.put(work)

    def event_create(self, handle):
        self.events.append(None)
        handle._obj.value = len(self.events)
        return 0

    def event_record_with_flags(self, event, stream, flags):
        assert flags.value == (self.capturing is not None)  # else a graph's event could not be read

        def work():
            self.events[event.value - 1] = self.now

        self.put(work)
        return 0

    def event_elapsed_time(self, found, first, second):
        found._obj.value = (self.events[second.value - 1] - self.events[first.value - 1]) / 1e6
        return 0

    def stream_synchronize(self, stream):
        return 0

    def memcpy_async(self, target, source, size, kind, stream):
        return 0

    def stream_begin_capture(self, stream, mode):
        self.capturing = []
        return 0

    def stream_end_capture(self, stream, graph):
        self.graphs.append(self.capturing)
        self.capturing = None
        graph._obj.value = len(self.graphs)
        return 0

    def graph_instantiate(self, executable, graph, flags):
        executable._obj.value = graph.value
        return 0

    def graph_destroy(self, graph):
        return 0

    def graph_launch(self, graph, stream):
        for work in self.graphs[graph.value - 1]:
            work()
        return 0


class Tensor(SimpleNamespace):
    def data_ptr(self):
        return self.address


@pytest.fixture
def library(monkeypatch):
    """A library for a GPU as if it had been loaded, whose step has two kernels and another call in between."""
    stream = Stream()
    cuda = CudaRuntime.__new__(CudaRuntime)
    cuda._library, cuda.stream, cuda.capability = stream, 7, (9, 0)

    def machine(*_):
        instruments = []

        def step(*_):
            for symbol in ("fqt_a", "vm.builtin.reshape", "fqt_b"):
                for instrument in instruments:
                    instrument(None, symbol, True, None)
                if symbol in KERNELS:
                    stream.run_kernel(symbol)
                for instrument in instruments:
                    instrument(None, symbol, False, None)
            return loss, loss

        return {"train_step": step, "predict": None, "set_instrument": instruments.append}

    from contextlib import nullcontext

    loss = Tensor(address=64, shape=(), dtype="float32")
    ffi = SimpleNamespace(use_raw_stream=lambda *_: nullcontext(), convert=lambda function: function)
    monkeypatch.setattr(cuda_library, "load_machine", machine)
    made = CudaLibrary.__new__(CudaLibrary)
    made.__dict__ |= {
        "path": None, "_cuda": cuda, "_ffi": ffi, "_device": None, "_inputs": {"x": loss}, "_loss": loss,
        "_logits": loss, "_records": True, "_warm": True, "_module": None, "_graphs": {},
        "_train_step": machine()["train_step"],
    }  # fmt: skip
    monkeypatch.setattr(CudaLibrary, "fetch", lambda self, _: np.float32(0.5))
    return made


def test_each_step_is_timed_one_by_one_and_recorded(library):
    kernels = [KernelInfo(symbol, "op", "layer", "forward", 0, 0, 0) for symbol in KERNELS]
    session = SimpleNamespace(functions=library, manifest=SimpleNamespace(kernels=kernels, name="made"))
    clock, batch = KernelClock(session), Tensor(address=128, shape=(), dtype="float32")
    stream = library._cuda._library
    for step in range(4):
        events = len(stream.events)
        with clock:
            session.functions.train_step(batch)
            calls = clock.take()
        assert (calls.end - calls.begin).tolist() == list(KERNELS.values())
        assert calls.begin[1] == calls.end[0]
        assert (len(stream.events) == events) == (step > 1)  # the first is launched, the second recorded
    assert len(stream.graphs) == 1
    assert session.functions is library
    stream.graphs.clear()
    library.train_step(batch)  # the plain step records its own graph, without events
    assert len(stream.graphs[0]) == len(KERNELS)


def test_without_graphs_events_are_used_again(library):
    library._records = False
    timed, start, take = library.timed()
    found = np.zeros((2, 3), np.int64)
    counts = []
    for _ in range(3):
        start(found.ctypes.data, 2)
        timed.train_step(Tensor(address=128, shape=(), dtype="float32"))
        assert take() == 2
        assert take() == 0  # each step once
        counts.append(len(library._cuda._library.events))
    assert counts == [counts[0]] * 3
    assert found[:, 0].tolist() == [symbol_digest(symbol) for symbol in KERNELS]


def test_the_virtual_machine_calls_it_around_each_kernel(digits_artifact):
    """A real step, whose kernels run on the CPU: the stand-in's clock counts how often it was asked."""
    session = fqt_deploy.load(digits_artifact)
    asked = []
    cuda = SimpleNamespace(
        event=lambda: len(asked), record=lambda event, in_graph: asked.append(event), synchronize=lambda: None,
        between=lambda first, second: 0,
    )  # fmt: skip
    timed, _, _ = session.functions.timed()
    events = KernelEvents(cuda)
    timed._machine["set_instrument"](timed._ffi.convert(events.watch))
    session.functions = timed
    _, calls = events.noted(lambda: session.step(made_up_batch(session.manifest)), recorded=False)
    assert [digest for digest, _, _ in calls] == [symbol_digest(k.symbol) for k in session.manifest.kernels]
    assert len(asked) == 2 * len(calls)
