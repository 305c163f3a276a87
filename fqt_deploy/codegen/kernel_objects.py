"""Kernels scheduled and compiled to object files by several processes; threads would wait for Python's lock."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import tvm
from tvm import tirx

from fqt_deploy.targets.base import Target

BATCH = 32
"""Kernels in one object file: few enough to share the work evenly, many enough that starting costs little."""

PASS_CONFIG = {"tirx.disable_assert": True}
"""Kernels trust their arguments: sessions check what is given to the step, whose every call is typed. Checks in all
kernels would be three quarters of the library, and half of the time that LLVM takes."""

Kernels = Mapping[str, tirx.PrimFunc]
"""Kernels by their symbols, not scheduled."""

_inherited: list[tuple[Sequence[Kernels], Target, Path]] = []
"""What forked processes work on: TVM's functions cannot be sent to a process that is running already."""


def split_kernels(kernels: Kernels) -> list[Kernels]:
    """Batches of ``BATCH`` kernels or somewhat more, by name: the same in every run, on every machine."""
    names = sorted(kernels)
    count = max(1, len(names) // BATCH)
    bounds = [len(names) * i // count for i in range(count + 1)]
    return [{n: kernels[n] for n in names[a:b]} for a, b in itertools.pairwise(bounds)]


@contextmanager
def compiling(batches: Sequence[Kernels], target: Target, folder: Path) -> Iterator[list[Future[Path]]]:
    """Start to compile ``batches``, in the background of the block; when that fails, they end at once.

    Args:
        batches: from ``split_kernels``.
        target: schedules the kernels, and says what to compile for.
        folder: for the object files.

    Yields:
        One future for each batch: the path of its object file.
    """
    if not batches:
        yield []
        return
    workers = min(len(os.sched_getaffinity(0)), len(batches))
    others = set(multiprocessing.active_children())
    _inherited.append((batches, target, folder))
    try:
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupts) as pool:
            try:
                yield [pool.submit(_compile_batch, i) for i in range(len(batches))]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()
                raise
    finally:
        _inherited.pop()


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of the group; the one that asked for the kernels answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _compile_batch(number: int) -> Path:
    """Compile one batch of what this process has inherited."""
    batches, target, folder = _inherited[-1]
    path = folder / f"kernels{number}.o"
    module = tvm.IRModule({name: target.schedule(kernel) for name, kernel in batches[number].items()})
    with target.tvm_target, tvm.transform.PassContext(config=PASS_CONFIG):
        tvm.compile(module, target.tvm_target).mod.write_to_file(str(path))
    return path
