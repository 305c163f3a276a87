"""What profiles and statistics cost: steps with and without them, in turn; medians.

Example: ``python -m tools.profile_cost vgg16_cifar.fqt``. Elapsed times are void unless the machine is quiet.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
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
    parser.add_argument("--turns", type=int, default=10, help="turns of 10 steps of each kind (default: 10)")
    arguments = parser.parse_args()
    session = fqt_deploy.load(arguments.artifact)
    batch, clock, watch = made_up_batch(session.manifest), KernelClock(session), TrainingWatch(session, EVERY)

    def plain() -> None:
        for _ in range(EVERY):
            session.step(batch)

    def timed() -> None:
        with clock:
            for _ in range(EVERY):
                session.step(batch)
                clock.take()

    def watched() -> None:
        for _ in range(EVERY):
            watch.begin()
            session.step(batch)
            watch.end()

    kinds: dict[str, Callable[[], None]] = {"plain": plain, "kernels timed": timed, "watched every 10": watched}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    worked: dict[str, list[float]] = {name: [] for name in kinds}
    for run in kinds.values():
        run()
    with OtherWork() as others:
        for _ in range(arguments.turns):
            for name, run in kinds.items():
                begin, before = time.perf_counter(), time.process_time()
                run()
                seconds[name].append((time.perf_counter() - begin) / EVERY)
                worked[name].append((time.process_time() - before) / EVERY)
    for kind, found in (("elapsed", seconds), ("of the processor", worked)):
        for name, times in found.items():
            middle, plain_s = statistics.median(times), statistics.median(found["plain"])
            print(f"{name:18} {1e3 * middle:9.3f} ms {kind}, {100 * (middle / plain_s - 1):+.2f} %")
    print(f"others used {others.cores} cores")


if __name__ == "__main__":
    main()
