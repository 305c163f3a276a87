"""Time a step of ``--emit onnx-step`` in headless Chromium beside stock ONNX Runtime in Python.

    fqt-compile examples/digits_cnn.py --emit onnx-step -o digits
    python -m tools.bench_browser digits --threads 1

Native ONNX Runtime and onnxruntime-web in a Web Worker take turns, on the same random batches, with the same number of
threads. Each turn is a new session or a new browser: what it takes to load is part of it. The first steps are not
timed: browsers compile WebAssembly quickly at first, and well while it runs. One line of JSON at the end.
Needs ``npm install`` in ``js/`` and Chromium.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.onnx_names import step_files
from tools.bench_onnx import flat_step
from tools.train_onnx import open_session, synthetic
from tools.training import Array

_PACKAGE = Path(__file__).resolve().parents[1] / "js"


_WARM = 20
"""Steps before those that are timed."""


@dataclass(frozen=True)
class Turn:
    """One session: seconds to load it, seconds of each timed step, and all losses."""

    load: float
    steps: list[float]
    losses: list[float]


def native(path: Path, threads: int, steps: int, x: Array, y: Array) -> Turn:
    """A turn of ONNX Runtime in this process."""
    start = time.perf_counter()
    step = flat_step(path, threads)
    loaded, half = time.perf_counter() - start, len(x) // 2
    seconds, losses = [], []
    for i in range(_WARM + steps):
        batch = slice(half * (i % 2), half * (i % 2 + 1))
        start = time.perf_counter()
        losses.append(step(x[batch], y[batch]))
        seconds.append(time.perf_counter() - start)
    return Turn(loaded, seconds[_WARM:], losses)


def browser(path: Path, provider: str, threads: int, steps: int, batches: Path) -> Turn:
    """A turn of Chromium, on the arrays in the folder ``batches``, with an execution provider of ONNX Runtime.

    Raises:
        FqtError: FQT509 if Node, Chromium or the npm packages are missing.
    """
    node, chromium = shutil.which("node"), shutil.which("chromium") or shutil.which("google-chrome")
    packages = [_PACKAGE / "node_modules" / name for name in ("onnxruntime-web", "puppeteer-core")]
    if node is None or chromium is None or not all(package.is_dir() for package in packages):
        raise FqtError(
            "Node, Chromium or npm packages are missing", code="FQT509", hint="apt install chromium nodejs; make js-env"
        )
    name = path.name.removesuffix(".step.onnx")
    given = (chromium, path.parent.absolute(), name, batches, provider, threads, _WARM + steps)
    command = [node, _PACKAGE / "bench" / "browser.mjs", *given]
    shown = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True).stdout
    found = json.loads(shown)
    return Turn(found["loaded"] / 1e3, [each / 1e3 for each in found["milliseconds"][_WARM:]], found["losses"])


def compare(path: Path, provider: str, threads: int, steps: int, turns: int) -> dict[str, float | str]:
    """The medians of both, which take turns; each is printed as it ends."""
    x, y = synthetic(open_session(path, threads, None))
    found: dict[str, list[Turn]] = {"native": [], "browser": []}
    with tempfile.TemporaryDirectory() as folder:
        for name, array in (("x", x), ("y", y)):
            (Path(folder) / f"{name}.bin").write_bytes(array.tobytes())
        for _ in range(turns):
            found["native"].append(native(path, threads, steps, x, y))
            found["browser"].append(browser(path, provider, threads, steps, Path(folder)))
            for name, each in found.items():
                turn = each[-1]
                print(f"{name}: loaded in {turn.load:.2f} s, median step {1e3 * statistics.median(turn.steps):.1f} ms")
    result: dict[str, float | str] = {"model": path.name, "provider": provider}
    result |= {"batch": len(x) // 2, "threads": threads}
    for name, each in found.items():
        result[f"{name}_load_s"] = round(statistics.median(turn.load for turn in each), 2)
        result[f"{name}_ms"] = round(1e3 * statistics.median(second for turn in each for second in turn.steps), 1)
    ratios = [statistics.median(b.steps) / statistics.median(n.steps) for n, b in zip(*found.values(), strict=True)]
    first = [each[0].losses[0] for each in found.values()]
    return result | {"step_ratio": round(statistics.median(ratios), 2), "first_loss_apart": abs(first[0] - first[1])}


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("stem", type=Path, help="path of the files without their endings")
    parser.add_argument(
        "--provider",
        choices=("wasm", "webgpu", "webnn"),
        default="wasm",
        help="what computes in the browser; webgpu and webnn on the processor, too (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=1, help="of each side (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each turn (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="of each side (default: %(default)s)")
    arguments = parser.parse_args()
    path = arguments.stem.with_name(arguments.stem.name + ".step.onnx")
    settings = (arguments.provider, arguments.threads, arguments.steps, arguments.turns)
    print(json.dumps(compare(step_files(path).step, *settings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
