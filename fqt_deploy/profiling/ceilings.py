"""The rates that this machine reaches at most, measured with NumPy alone: what rooflines are drawn with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from fqt_deploy.core.manifest import KernelInfo

_STREAM = 1 << 22
"""Number of float32 elements of each array that a thread streams: beyond the caches."""
_SIZE = 768
_REPEATS = 5


@dataclass(frozen=True)
class Ceilings:
    """Rates of all threads together.

    Attributes:
        fp32_macs: fp32 multiply-accumulates a second: NumPy's product of two matrices, or the fastest of the step's
            own kernels if that is faster; 0 if neither is known.
        bytes: bytes a second, read and written, of sums of two arrays into a third, far larger than caches. Kernels
            whose operands lie in a cache are faster.
        bit_macs: single-bit multiply-accumulates a second of the fastest of the step's own kernels; 0 if it has none.
    """

    fp32_macs: float
    bytes: float
    bit_macs: float = 0.0

    def seconds(self, *, flops: int, bit_ops: int, bytes_moved: int) -> float:
        """The least time that this work takes: the roofline. Two operations are one multiply-accumulate."""
        bits = bit_ops / 2 / self.bit_macs if self.bit_macs else 0.0
        return max(flops / 2 / self.fp32_macs if self.fp32_macs else 0.0, bits, bytes_moved / self.bytes)

    def with_kernels(self, kernels: Iterable[KernelInfo], seconds: Iterable[float]) -> Ceilings:
        """The ceilings, raised to what kernels that took ``seconds`` have reached."""
        fp32, bits = self.fp32_macs, self.bit_macs
        for kernel, time_s in zip(kernels, seconds, strict=True):
            if time_s > 0:
                fp32 = max(fp32, kernel.flops / 2 / time_s if kernel.flops > _LARGE else 0)
                bits = max(bits, kernel.bit_ops / 2 / time_s if kernel.bit_ops > _LARGE else 0)
        return replace(self, fp32_macs=fp32, bit_macs=bits)


_LARGE = 1_000_000
"""Number of operations from which a kernel's rate is no accident of the clock."""


def measure_ceilings(threads: int) -> Ceilings:
    """Measure them with so many threads; NumPy's own library chooses how many multiply matrices."""
    a = np.random.default_rng(0).standard_normal((_SIZE, _SIZE), dtype=np.float32)
    product = np.empty_like(a)
    fp32 = _SIZE**3 / _fastest(lambda: np.matmul(a, a, out=product))
    arrays = [tuple(np.ones(_STREAM, np.float32) for _ in range(3)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        stream = _fastest(lambda: list(pool.map(lambda xyz: np.add(xyz[0], xyz[1], out=xyz[2]), arrays)))
    return Ceilings(fp32_macs=fp32, bytes=threads * 3 * 4 * _STREAM / stream)


def _fastest(run: Callable[[], object]) -> float:
    """The least seconds of several runs, the first one left out."""
    found = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found[1:])
