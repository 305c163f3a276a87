"""Kernels scheduled and compiled to object files by several processes; threads would wait for Python's lock.

Object code that was compiled before comes from the cache: neither loop nests nor schedules are made for it.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import tirx

from fqt_deploy.core.file_cache import FileCache
from fqt_deploy.targets.base import Target

LARGEST_BATCH = 24
"""Upper bound of the kernels in one object file: few enough to share the work evenly."""
BATCH_ENDS = "08"
"""Last characters of the names that end a batch: a kernel more or less changes the batch that it is in, no other. With
eight kernels in a batch on average, starting LLVM takes 5 % of the time."""

PASS_CONFIG = {"tirx.disable_assert": True, "tirx.disable_cse_tir": True}
"""TVM's settings for kernels.

They trust their arguments: sessions check what is given to the step, whose every call is typed. Checks in all kernels
would be three quarters of the library, and half of the time that LLVM takes. Common subexpressions are left to LLVM
and nvcc, which find them anyway.
"""


@dataclass(frozen=True)
class KernelSources:
    """The sources that kernels are compiled from.

    Attributes:
        texts: by symbol, the text that says all that the kernel's loop nests depend on.
        function: function from a symbol to the kernel's loop nests, not scheduled.
        target: schedules the kernels, and says what to compile for.
        cache: the cache of object code; None for none.
        small: the kernels that compute little: LLVM takes a third less time over them.
    """

    texts: Mapping[str, str]
    function: Callable[[str], tirx.PrimFunc]
    target: Target
    cache: FileCache | None
    small: frozenset[str] = frozenset()

    def batches(self) -> list[Batch]:
        """All kernels, a batch for each object file: small ones are by themselves."""
        small = split_kernels(self.small & self.texts.keys())
        return [*split_kernels(self.texts.keys() - self.small), *small]


Batch = tuple[str, ...]
"""The symbols of the kernels that one object file defines."""

_inherited: list[tuple[KernelSources, Path]] = []
"""The work of forked processes: TVM's functions cannot be sent to a process that is running already."""


def split_kernels(symbols: Iterable[str]) -> list[Batch]:
    """Batches of ``symbols`` by name: the same in every run, on every machine, and most of them in similar programs."""
    batches: list[Batch] = []
    current: list[str] = []
    for symbol in sorted(symbols):
        current.append(symbol)
        if symbol[-1] in BATCH_ENDS or len(current) == LARGEST_BATCH:
            batches.append(tuple(current))
            current = []
    return [*batches, tuple(current)] if current else batches


@contextmanager
def compiling(kernels: KernelSources, folder: Path) -> Iterator[list[Future[Path]]]:
    """Start to compile ``kernels``, in the background of the block; when that fails, they end at once.

    Args:
        kernels: what to compile.
        folder: the folder for the object files.

    Yields:
        One future for each object file: its path.
    """
    found: list[Future[Path]] = []
    missing: list[Batch] = []
    for batch in kernels.batches():
        code = kernels.cache.read(_entry(kernels, batch)) if kernels.cache is not None else None
        if code is None:
            missing.append(batch)
        else:
            found.append(_done(_object_file(folder, batch)))
            found[-1].result().write_bytes(code)
    if len(missing) > 1:
        with _pool(kernels, folder, workers=min(len(os.sched_getaffinity(0)), len(missing))) as pool:
            yield [*found, *(pool.submit(_compile_inherited, batch) for batch in missing)]
    else:
        yield [*found, *(_done(_compile_batch(kernels, folder, batch)) for batch in missing)]
    if missing and kernels.cache is not None:
        kernels.cache.trim()


def _done(path: Path) -> Future[Path]:
    future: Future[Path] = Future()
    future.set_result(path)
    return future


@contextmanager
def _pool(kernels: KernelSources, folder: Path, workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of forked processes that know ``kernels``; they are ended if the block fails."""
    others = set(multiprocessing.active_children())
    _inherited.append((kernels, folder))
    try:
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()
                raise
    finally:
        _inherited.pop()


def _begin() -> None:
    """Begin a process of the pool: leave Ctrl-C, which reaches the whole group, to the one that asked for the kernels.

    What was inherited is never garbage: looking at it would copy its memory. Of what a process of seconds makes itself
    little is.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def _compile_inherited(batch: Batch) -> Path:
    """Compile one batch of what this process has inherited."""
    return _compile_batch(*_inherited[-1], batch)


def _compile_batch(kernels: KernelSources, folder: Path, batch: Batch) -> Path:
    """Schedule and compile ``batch``, and keep the object code in the cache."""
    target, path = kernels.target, _object_file(folder, batch)
    module = tvm.IRModule({symbol: target.schedule(kernels.function(symbol)) for symbol in batch})
    with target.tvm_target, tvm.transform.PassContext(config=PASS_CONFIG):
        compiled = tvm.compile(module, _tvm_target(kernels, batch), tir_pipeline=target.lowering)
    compiled.mod.write_to_file(str(path))
    if kernels.cache is not None:
        kernels.cache.write(_entry(kernels, batch), path.read_bytes())
    return path


def _tvm_target(kernels: KernelSources, batch: Batch) -> tvm.target.Target:
    """What TVM compiles ``batch`` for."""
    target = kernels.target.tvm_target
    return tvm.target.Target({**target.export(), "opt-level": 1}) if batch[0] in kernels.small else target


def _object_file(folder: Path, batch: Sequence[str]) -> Path:
    return folder / f"{batch[0]}.o"


def _entry(kernels: KernelSources, batch: Batch) -> Path:
    assert kernels.cache is not None
    effort = "small " if batch[0] in kernels.small else ""
    return kernels.cache.path(f"{effort}{symbol} {kernels.texts[symbol]}" for symbol in batch)
