"""Build, check and time 1-bit products and training steps on an NVIDIA GPU beside PyTorch's.

On one machine with the compiler, nvcc and a GPU:

    python -m tools.bench_gpu

With a GPU elsewhere, where PyTorch with CUDA is installed and nothing of the compiler:

    python -m tools.bench_gpu --build build/gpu       # here; then carry the checkout with this folder
    python -m tools.bench_gpu --run build/gpu         # there

The last line is JSON. Ends with exit code 1 if a number is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tools.gpu_bench import layout


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line."""
    description, _, usage = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--build", type=Path, metavar="DIR", help="build into DIR and run nothing")
    only.add_argument("--run", type=Path, metavar="DIR", help="run what --build left in DIR")
    parser.add_argument("--arch", default="sm_90a", help="architectures to build for (default: %(default)s)")
    parser.add_argument("--python", default="3.12", help="Python where it runs (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=440, help="start nothing that may not end by then (default: %(default)s)"
    )
    parser.add_argument("--profile", metavar="STEP", help="also print the kernels of this step by time, as vgg16-once")
    return parser.parse_args(arguments)


def build(folder: Path, arguments: argparse.Namespace) -> None:
    """Compile everything into ``folder``."""
    from fqt_deploy.core.diagnostics import FqtError
    from tools.gpu_bench.build import build as build_all

    try:
        build_all(folder, arguments.arch, arguments.python, lambda phase: print(f"{phase} ...", file=sys.stderr))
    except FqtError as error:
        print(error.render(), file=sys.stderr)
        raise SystemExit(1) from None


def run(folder: Path, arguments: argparse.Namespace, begin: float) -> dict[str, Any]:
    """Check, then time; returns the content of the last line."""
    layout.use(folder)
    import torch

    from tools.gpu_bench import checks
    from tools.gpu_bench import run as bench

    bench.require_device()

    deadline = begin + arguments.seconds
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    print(f"{found['device']}, PyTorch {found['torch']}")
    found["kernels"] = checks.check_kernels(folder)
    found["training"] = checks.check_training(folder)
    found["device_tensors"] = bench.check_device_tensors(folder)
    found["ceilings"] = bench.ceilings(folder)
    found["products"] = bench.products(folder, deadline - 240)
    found["steps"] = bench.steps(folder, deadline, found["ceilings"])
    found["forms"] = bench.fastest_form(found["products"], found["steps"])
    if arguments.profile:
        bench.profile(folder, arguments.profile)
    found["seconds"] = time.perf_counter() - begin
    return found


def correct(found: dict[str, Any]) -> bool:
    """Whether everything that was checked is right."""
    training = found["training"]
    return (
        not found["kernels"]["wrong"]
        and bool(training["same"])
        and bool(training["falls"])
        and bool(found["device_tensors"]["same"])
        and all(row["equal"] for row in found["products"])
    )


def main() -> int:
    """Build, run, or do both, as the command line says."""
    arguments, begin = parse(), time.perf_counter()
    if arguments.build is not None:
        build(arguments.build, arguments)
        return 0
    if arguments.run is not None:
        found = run(arguments.run, arguments, begin)
    else:
        from tools.gpu_bench import run as bench

        bench.require_device()
        arguments.python = f"{sys.version_info.major}.{sys.version_info.minor}"
        with tempfile.TemporaryDirectory() as name:
            build(Path(name), arguments)
            found = run(Path(name), arguments, begin)
    print(json.dumps(found))
    return 0 if correct(found) else 1


if __name__ == "__main__":
    sys.exit(main())
