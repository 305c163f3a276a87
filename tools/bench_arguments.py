"""What the benchmarks of single kernels share: options for threads and turns, and the threads themselves."""

from __future__ import annotations

import argparse
import os


def bench_parser(documentation: str | None) -> argparse.ArgumentParser:
    """A parser with ``--threads`` and ``--turns``, described by the first line of a module's documentation."""
    parser = argparse.ArgumentParser(description=(documentation or "").partition("\n")[0])
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all of this machine"
    )
    parser.add_argument("--turns", type=int, default=5, help="turns of every contender (default: %(default)s)")
    return parser


def use_threads(threads: int) -> None:
    """Let our kernels and PyTorch's use this number of threads; before either is loaded."""
    os.environ |= {"FQT_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    from fqt_deploy.runtime.threads import configure_threads

    configure_threads()
    import torch

    torch.set_num_threads(threads)
