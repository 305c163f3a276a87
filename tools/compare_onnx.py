"""Time steps of several exported files in stock ONNX Runtime, in turn: what a change of the exporter brings.

    python -m tools.compare_onnx before.onnx after.step.onnx --threads 1

Files of ``--emit onnx`` and of ``--emit onnx-step`` (``NAME.step.onnx``, with the state beside it) of the same model
and batch, on the same random batches. Ratios are medians of the steps' ratios to the first file's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from tools.bench_onnx import Step, flat_step, onnx_step
from tools.train_onnx import open_session, synthetic


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", help="exported training steps")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each (default: %(default)s)")
    arguments = parser.parse_args()
    threads, files = arguments.threads, arguments.files
    steps: list[Step] = [
        flat_step(path, threads) if path.name.endswith(".step.onnx") else onnx_step(path, threads, None)
        for path in files
    ]
    x, y = synthetic(open_session(files[0], threads, None))
    batch = len(x) // 2
    seconds: list[list[float]] = [[] for _ in files]
    losses: list[list[float]] = [[] for _ in files]
    for i in range(arguments.steps + 1):
        half = slice((i % 2) * batch, (i % 2 + 1) * batch)
        for place, step in enumerate(steps):
            start = time.perf_counter()
            losses[place].append(step(x[half], y[half]))
            seconds[place].append(time.perf_counter() - start)
    found = []
    for path, each, loss in zip(files, seconds, losses, strict=True):
        ratio = statistics.median(ours / first for ours, first in zip(each[1:], seconds[0][1:], strict=True))
        median = 1e3 * statistics.median(each[1:])
        found.append({"file": path.name, "ms": round(median, 1), "ratio": round(ratio, 3)})
        print(f"{path}: median step {median:.1f} ms, {ratio:.3f} of the first, loss {loss[0]:.6f} to {loss[-1]:.6f}")
    print(json.dumps({"batch": batch, "threads": threads, "files": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
