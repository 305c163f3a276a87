"""Train an exported ONNX file in stock ONNX Runtime: io_binding alone, no code of fqt-deploy.

The state stays in ONNX Runtime's own memory: what a step returns as ``S::next`` is bound to input ``S`` of the next.

    fqt-compile examples/vgg16_cifar.py --batch 32 --emit onnx -o vgg16.onnx
    python -m tools.train_onnx vgg16.onnx --data cifar.npz --steps 100
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from tools.training import Array, batches, cosine

NEXT = "::next"


def synthetic(session: onnxruntime.InferenceSession) -> tuple[Array, Array]:
    """Two batches of random data of the right shapes: enough to time a step."""
    generator = np.random.default_rng(0)
    inputs = {value.name: value.shape for value in session.get_inputs()}
    batch, *rest = inputs["x"]
    classes = next(value.shape[-1] for value in session.get_outputs() if value.name == "logits")
    x = generator.standard_normal((2 * batch, *rest), dtype=np.float32)
    return x, generator.integers(0, classes, (2 * batch, *inputs["y"][1:]))


def open_session(path: Path, threads: int, plugin: Path | None) -> onnxruntime.InferenceSession:
    """A session on the file ``path`` with this many threads (0: all cores), and the plug-in's kernels if given."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if plugin is not None:
        os.environ.setdefault("TVM_BIND_THREADS", "0")  # before the library is loaded
        if threads:
            os.environ["TVM_NUM_THREADS"] = str(threads)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the kernels need the cores
        options.register_custom_ops_library(str(plugin))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def train_step(
    session: onnxruntime.InferenceSession, given: dict[str, Array], state: dict[str, Any]
) -> tuple[float, dict[str, Any]]:
    """Run one step on the inputs ``given`` from ``state`` (empty: the file's own); the loss and the next state."""
    outputs = [value.name for value in session.get_outputs()]
    binding = session.io_binding()
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in given.items()} | state
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for name in outputs:
        binding.bind_output(name, "cpu")
    session.run_with_iobinding(binding)
    results = dict(zip(outputs, binding.get_outputs(), strict=True))
    updated = {name.removesuffix(NEXT): value for name, value in results.items() if name.endswith(NEXT)}
    return float(results["loss"].numpy()), updated


def train(
    session: onnxruntime.InferenceSession, x: Array, y: Array, steps: int, lr: float | None, every: int
) -> list[float]:
    """Train for ``steps`` batches, print the loss now and then, and return the seconds of each step."""
    shapes = {value.name: value.shape for value in session.get_inputs()}
    defaults = {value.name: value.shape for value in session.get_overridable_initializers()}
    state: dict[str, Any] = {}
    seconds = []
    for step, index in enumerate(batches(len(x), shapes["x"][0], steps)):
        start = time.perf_counter()
        given = {"x": x[index], "y": y[index]}
        if lr is not None:
            given["lr"] = np.full(defaults["lr"], cosine(lr, step, steps), dtype=np.float32)
        loss, state = train_step(session, given, state)
        seconds.append(time.perf_counter() - start)
        if step % every == 0 or step == steps - 1:
            print(f"step {step}: loss {loss:.4f}, {1e3 * seconds[-1]:.1f} ms")
    return seconds


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="file of fqt-compile --emit onnx")
    parser.add_argument("--data", type=Path, help=".npz with arrays x and y (default: random data)")
    parser.add_argument("--steps", type=int, default=20, help="batches to train on (default: %(default)s)")
    parser.add_argument("--lr", type=float, help="learning rate of a cosine schedule (default: constant, of the file)")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime (default: all cores)")
    parser.add_argument("--plugin", type=Path, help="custom-op library to replace the functions of domain ai.fqt")
    parser.add_argument("--every", type=int, default=10, help="steps between two lines (default: %(default)s)")
    arguments = parser.parse_args()
    start = time.perf_counter()
    session = open_session(arguments.model, arguments.threads, arguments.plugin)
    loaded = time.perf_counter() - start
    if arguments.data is None:
        x, y = synthetic(session)
    else:
        with np.load(arguments.data) as arrays:
            x, y = arrays["x"].astype(np.float32), arrays["y"].astype(np.int64)
    seconds = train(session, x, y, arguments.steps, arguments.lr, arguments.every)
    size = arguments.model.stat().st_size / 1e6
    print(
        f"{arguments.model}: {size:.1f} MB, loaded in {loaded:.1f} s, median step "
        f"{1e3 * statistics.median(seconds[1:] or seconds):.1f} ms, fastest {1e3 * min(seconds):.1f} ms"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
