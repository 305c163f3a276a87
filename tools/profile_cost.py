"""What profiles and statistics cost: the shortest steps with and without a clock, and the time that watching takes.

Example: ``python -m tools.profile_cost vgg16_cifar.fqt``. The shortest of many steps bears the load of other processes;
elapsed times as such are void on a busy machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import fqt_deploy
from fqt_deploy.profiling.machine import OtherWork
from fqt_deploy.profiling.measure import made_up_batch
from fqt_deploy.runtime.kernel_clock import KernelClock
from fqt_deploy.runtime.watch import TrainingWatch

EVERY = 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--steps", type=int, default=100, help="steps of each kind (default: 100)")
    arguments = parser.parse_args()
    session = fqt_deploy.load(arguments.artifact)
    batch, clock, watch = made_up_batch(session.manifest), KernelClock(session), TrainingWatch(session, EVERY)
    plain: list[float] = []
    timed: list[float] = []
    kinds: list[tuple[AbstractContextManager[object], list[float]]] = [(nullcontext(), plain), (clock, timed)]
    watching = 0.0
    with OtherWork() as others:
        for _ in range(arguments.steps):
            for kind, times in kinds:
                watching += _spent(time.thread_time, watch.begin)
                with kind:
                    times.append(_spent(time.perf_counter, lambda: session.step(batch)))
                watching += _spent(time.thread_time, watch.end)
    step, kernels = min(plain), len(session.manifest.kernels)
    each, look = (min(timed) - step) / kernels, watching / (2 * arguments.steps // EVERY)
    more = 100 * (min(timed) / step - 1)
    print(f"shortest step {1e3 * step:.3f} ms, with a clock {1e3 * min(timed):.3f} ms: {more:+.2f} %")
    print(f"{1e9 * each:.0f} ns for each of {kernels} kernels")
    print(f"watching takes {1e3 * look:.3f} ms every {EVERY} steps, {100 * look / EVERY / step:.2f} % of them")
    print(f"others used {others.cores} cores")


def _spent(clock: Callable[[], float], action: Callable[[], object]) -> float:
    begin = clock()
    action()
    return clock() - begin


if __name__ == "__main__":
    main()
