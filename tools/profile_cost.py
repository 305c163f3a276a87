"""What profiles and statistics cost: the shortest steps with and without a clock, and the time that watching takes.

Example: ``python -m tools.profile_cost vgg16_cifar.fqt``. Watching is measured as ``fqt-train`` does it, with a file
and TensorBoard. Elapsed times are void on a busy machine; ``--threads 1`` compares processor time instead, which other
processes change little, and so tells what the clock costs for each kernel.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import fqt_deploy
from fqt_deploy.profiling.machine import OtherWork
from fqt_deploy.profiling.measure import made_up_batch
from fqt_deploy.runtime.kernel_clock import KernelClock
from fqt_deploy.runtime.watch import TrainingWatch
from fqt_deploy.runtime.watch_log import LoggedWatch, WatchLog

EVERY = 10
Clock = Callable[[], float]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--steps", type=int, default=100, help="steps of each kind (default: 100)")
    parser.add_argument("--seconds", type=float, default=60, help="fewer steps if they take longer (default: 60)")
    parser.add_argument("--threads", type=int, help="threads of kernels (default: as in training)")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        os.environ["FQT_NUM_THREADS"] = str(arguments.threads)
    elapsed = time.process_time if arguments.threads == 1 else time.perf_counter
    with tempfile.TemporaryDirectory() as folder, OtherWork() as others:
        costs = _costs(arguments, elapsed, Path(folder))
    step, timed, kernels, look = costs
    print(f"shortest step {1e3 * step:.3f} ms, with a clock {1e3 * timed:.3f} ms: {100 * (timed / step - 1):+.2f} %")
    print(f"{1e9 * (timed - step) / kernels:.0f} ns for each of {kernels} kernels")
    print(f"watching takes {1e3 * look:.3f} ms every {EVERY} steps, {100 * look / EVERY / step:.2f} % of them")
    print(f"others used {others.cores} cores")


def _costs(arguments: argparse.Namespace, elapsed: Clock, folder: Path) -> tuple[float, float, int, float]:
    """Seconds of the shortest steps without and with a clock, number of kernels, mean seconds of a look."""
    session = fqt_deploy.load(arguments.artifact)
    batch, clock = made_up_batch(session.manifest), KernelClock(session)
    watch = LoggedWatch(TrainingWatch(session, EVERY), WatchLog(folder / "watch.csv", folder))
    plain: list[float] = []
    timed: list[float] = []
    kinds: list[tuple[AbstractContextManager[object], list[float]]] = [(nullcontext(), plain), (clock, timed)]
    looks, begun = 0.0, time.perf_counter()
    while len(plain) < arguments.steps and (len(plain) < EVERY or time.perf_counter() - begun < arguments.seconds):
        for kind, times in kinds:
            looks += _spent(time.thread_time, watch.begin)
            with kind:
                times.append(_spent(elapsed, lambda: session.step(batch)))
            looks += _spent(time.thread_time, watch.end)
    watch.close()
    return min(plain), min(timed), len(session.manifest.kernels), looks / (2 * len(plain) // EVERY)


def _spent(clock: Clock, action: Callable[[], object]) -> float:
    begin = clock()
    action()
    return clock() - begin


if __name__ == "__main__":
    main()
