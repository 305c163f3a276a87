"""The command ``race``: time the steps of one network side by side, ours and PyTorch's, as ``tools.bench_step`` does.

With the validation curves of the records these times give the time to a fixed accuracy. Run it while nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tools.accuracy.networks import NETWORKS
from tools.accuracy.rows import ALL_ROWS
from tools.accuracy.runner import open_session, revision
from tools.bench_step import TOLERATED_CORES, Step, calls_in_a_turn, interleaved_times, seconds_of_others


def add_to(commands: Any) -> None:
    """Add the command ``race`` to ``commands``."""
    parser = commands.add_parser("race", help="time the steps of recipes and of PyTorch side by side")
    parser.add_argument("--network", required=True, choices=list(NETWORKS))
    parser.add_argument("--rows", nargs="+", choices=list(ALL_ROWS), required=True)
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--repeats", type=int, default=5, help="turns of every contender (default: %(default)s)")
    parser.add_argument("--results", type=Path, required=True, help="file of JSON lines to add to")
    parser.add_argument("--work", type=Path, default=Path("build/accuracy"))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and append one line."""
    network = NETWORKS[arguments.network]
    batch = arguments.batch or network.batch
    generator = np.random.default_rng(0)
    x = generator.standard_normal((batch, *network.image), dtype=np.float32)
    y = generator.integers(0, arguments.classes, batch)
    steps: dict[str, Step] = {}
    for row in arguments.rows:
        session = open_session(network, arguments.classes, batch, row, "adam", arguments.work / "artifacts")
        steps[row] = partial(session.step, x, y)
    calls = calls_in_a_turn(steps)
    others, start = seconds_of_others(), time.perf_counter()
    times = interleaved_times(steps, calls, arguments.repeats)
    cores = (seconds_of_others() - others) / (time.perf_counter() - start)
    if cores > TOLERATED_CORES:
        print(f"warning: other processes used {cores:.2f} cores: measure again on a quiet machine", file=sys.stderr)
    medians = {row: statistics.median(found) for row, found in times.items()}
    line = {
        "network": network.name,
        "batch": batch,
        "threads": int(os.environ.get("FQT_NUM_THREADS") or len(os.sched_getaffinity(0))),
        "revision": revision(),
        "cores_of_others": round(cores, 3),
        "step_s": medians,
    }
    for row, seconds in medians.items():
        print(f"{row:12} {1e3 * seconds:9.1f} ms a step")
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    with arguments.results.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return 0
