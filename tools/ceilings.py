"""The ceilings of this machine: the rates that rooflines are drawn with, each measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

STREAM_ELEMENTS = 1 << 25
"""Number of float32 elements of each array that is streamed: far beyond any cache."""
FP32_SIZE = 2048


@dataclass(frozen=True)
class Ceilings:
    """Rates of all threads together.

    Attributes:
        bit_macs: single-bit multiply-accumulates a second, operands in the first-level cache; a code counts as its
            bits, which tile registers multiply all at once.
        fp32_macs: fp32 multiply-accumulates a second, in PyTorch's product of two large square matrices.
        bytes: bytes a second, read and written, of PyTorch's sum of two arrays into a third.
    """

    bit_macs: float
    fp32_macs: float
    bytes: float

    def seconds(self, *, flops: int, bit_ops: int, bytes_moved: int) -> float:
        """The least time that this work takes: the roofline. Two operations are one multiply-accumulate."""
        return max(flops / 2 / self.fp32_macs, bit_ops / 2 / self.bit_macs, bytes_moved / self.bytes)


def measure_ceilings(threads: int) -> Ceilings:
    """Measure all of them; PyTorch and TVM must have been told the number of threads."""
    import torch

    from tools.bench_gemm import measured_ceiling

    a, b = torch.randn(FP32_SIZE, FP32_SIZE), torch.randn(FP32_SIZE, FP32_SIZE)
    product = torch.empty_like(a)
    x, y = torch.ones(STREAM_ELEMENTS), torch.ones(STREAM_ELEMENTS)
    z = torch.empty_like(x)
    return Ceilings(
        bit_macs=measured_ceiling(threads),
        fp32_macs=FP32_SIZE**3 / _median_seconds(lambda: torch.mm(a, b, out=product)),
        bytes=3 * 4 * STREAM_ELEMENTS / _median_seconds(lambda: torch.add(x, y, out=z)),
    )


def _median_seconds(run: Callable[[], Any], repeats: int = 7) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
