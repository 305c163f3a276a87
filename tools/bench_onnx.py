"""Time a training step of exported ONNX files: in stock ONNX Runtime, with the plug-in, and beside the artifact.

    fqt-compile examples/vgg16_cifar.py --batch 32 --emit onnx --emit onnx-step --emit onnx-plugin --emit so -o vgg16
    FQT_NUM_THREADS=2 python -m tools.bench_onnx vgg16

The contenders run one after the other, on the same random batches. One line of JSON at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import fqt_deploy
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.core.onnx_names import MANIFEST_KEY, step_files
from fqt_deploy.runtime.checkpoint import load_checkpoint
from fqt_deploy.runtime.threads import configure_threads
from tools.train_onnx import open_session, synthetic, train_step
from tools.training import Array

Step = Callable[[Array, Array], float]


def onnx_step(path: Path, threads: int, plugin: Path | None) -> Step:
    """Steps of an ONNX file; the state stays in ONNX Runtime's memory."""
    session = open_session(path, threads, plugin)
    state: dict[str, Any] = {}

    def step(x: Array, y: Array) -> float:
        nonlocal state
        loss, state = train_step(session, {"x": x, "y": y}, state)
        return loss

    return step


def flat_step(path: Path, threads: int) -> Step:
    """Steps of a file of ``--emit onnx-step``, from the state beside it; it stays in ONNX Runtime's memory."""
    session = open_session(path, threads, None)
    manifest = Manifest.from_json(session.get_modelmeta().custom_metadata_map[MANIFEST_KEY])
    arrays, settings = load_checkpoint(step_files(path).state, manifest)
    wanted = {value.name for value in session.get_inputs()}
    value_of = onnxruntime.OrtValue.ortvalue_from_numpy
    state = {name: value_of(array) for name, array in arrays.items() if name in wanted}
    rates = np.array(json.loads(settings["lr"]), dtype=np.float32)
    fixed: dict[str, Array] = {"seed": np.array(int(settings["seed"]), dtype=np.int64), "lr": rates}

    def step(x: Array, y: Array) -> float:
        loss, updated = train_step(session, {"x": x, "y": y, **fixed}, state)
        state.update(updated)
        return loss

    return step


def contenders(stem: Path, threads: int) -> Iterator[tuple[str, Callable[[], Step]]]:
    """Name and maker of each kind of step that lies beside ``stem``."""
    ends = (".onnx", ".step.onnx", ".plugin", ".fqt")
    model, flat, plugin, artifact = (stem.with_name(stem.name + end) for end in ends)
    yield "stock", lambda: onnx_step(model, threads, None)
    if flat.is_file():
        yield "flat", lambda: flat_step(flat, threads)
    if plugin.is_dir():
        yield "plugin", lambda: onnx_step(model, threads, plugin / "plugin.so")
    if artifact.is_dir():
        yield "artifact", lambda: fqt_deploy.load(artifact).step


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("stem", type=Path, help="path of the files without their endings")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each (default: %(default)s)")
    arguments = parser.parse_args()
    threads = configure_threads()
    model = arguments.stem.with_name(arguments.stem.name + ".onnx")
    x, y = synthetic(open_session(model, threads, None))
    batch = len(x) // 2
    found: dict[str, Any] = {"model": arguments.stem.name, "batch": batch, "threads": threads}
    found["onnx_mb"] = round(model.stat().st_size / 1e6, 1)
    for name, make in contenders(arguments.stem, threads):
        start = time.perf_counter()
        step = make()
        loaded = time.perf_counter() - start
        losses, seconds = [], []
        for i in range(arguments.steps + 1):
            half = slice((i % 2) * batch, (i % 2 + 1) * batch)
            start = time.perf_counter()
            losses.append(step(x[half], y[half]))
            seconds.append(time.perf_counter() - start)
        median, fastest = statistics.median(seconds[1:]), min(seconds[1:])
        print(
            f"{name}: loaded in {loaded:.2f} s, median step {1e3 * median:.1f} ms, fastest {1e3 * fastest:.1f} ms, "
            f"loss {losses[0]:.4f} to {losses[-1]:.4f}"
        )
        found |= {f"{name}_load_s": round(loaded, 2), f"{name}_ms": round(1e3 * median, 1)}
        found[f"{name}_fastest_ms"] = round(1e3 * fastest, 1)
        del step
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
