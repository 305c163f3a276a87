"""Time 1-bit matrix products beside PyTorch's fp32 and bf16, and beside what the processor can do at most.

Example: ``python -m tools.bench_gemm --threads 2``.

The product is the one that a linear layer compiles to, signs (or levels of several bits) times signs with an exact
integer result. PyTorch's fp32 is the faster of ``matmul``, with the weight in either order, and oneDNN on operands
packed beforehand. The ceiling is measured, of signs: the same instructions on operands that stay in the first-level
cache. A product of signs is made of popcounts, or of byte shuffles, also where there are tile registers (AMX), which
only convolutions gain from. The last line printed is JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tools.bench_arguments import bench_parser, use_threads

SHAPES = (
    (131072, 64, 576), (32768, 128, 1152), (8192, 256, 2304), (2048, 512, 4608), (512, 512, 4608),
    (4096, 768, 768), (4096, 3072, 768),
)  # fmt: skip
"""Rows, columns and contraction: the convolutions of VGG16 at batch 128, and linear layers of a transformer."""
PEAK_SHAPES = ((8192, 32, 4096), (16384, 64, 896))
"""Shapes at which popcounts are fastest: what they read in a tile of the first, 4 KB of rows and 16 KB of columns, is
no more than a first-level cache holds. Byte shuffles reach most with the second: two registers of columns, and words
that fill blocks of seven.
"""
PEAK_TRIALS = 20
PAUSE_S = 0.05
"""Seconds to pause before each turn: threads of the contender before, which wait by spinning, go to sleep."""
MINIMUM_TURN_S = 0.05

Run = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """The measurements of one shape.

    Attributes:
        m, n, k: rows, columns, contraction.
        ours_s: seconds of our product.
        fp32_s: seconds of PyTorch's best fp32.
        bf16_s: seconds of PyTorch's bf16.
        gmacs: our billions of multiply-accumulates a second.
        ceiling_gmacs: the rate of the same instructions on operands in the first-level cache.
        share_of_ceiling: what we reach of it.
    """

    m: int
    n: int
    k: int
    ours_s: float
    fp32_s: float
    bf16_s: float
    gmacs: float
    ceiling_gmacs: float
    share_of_ceiling: float

    @property
    def ratio_fp32(self) -> float:
        """Number of times that our product is faster than the best fp32."""
        return self.fp32_s / self.ours_s


def our_product(m: int, n: int, k: int, bits: int = 1) -> Run:
    """Our product of random signs, or of levels of several bits, with signs, compiled for this machine."""
    import torch
    import tvm
    from tvm import te

    import fqt_deploy.ops.registry  # noqa: F401
    from fqt_deploy.ops.op import FQT_OPS
    from fqt_deploy.targets.kernel_arguments import ARGUMENTS, encoded
    from fqt_deploy.targets.registry import make_target

    words, name = k // 32, "binary_conv2d" if bits == 1 else "level_conv2d"
    planes, signed = ((), ()) if bits == 1 else ((bits,), (True,))
    constants = [k, n, [1, 1], [1, 1], [0, 0], *signed]
    x = te.placeholder((1, 1, m, *planes, words), "int32", name="x")
    w = te.placeholder((n // 16, words, 16), "int32", name="w")
    op: Any = FQT_OPS[name]
    result = op(x, w, *constants).compute()
    attributes = {
        "fqt.op": name, "fqt.outputs": 1, "global_symbol": "main", "tirx.noalias": True,
        ARGUMENTS: encoded(getattr(torch.ops.fqt, name).default, [x, w, *constants]),
    }  # fmt: skip
    target = make_target("cpu")
    function = target.schedule(te.create_prim_func([x, w, result]).with_attrs(attributes))
    kernel = tvm.compile(tvm.IRModule({"main": function}), target.tvm_target)["main"]
    operands = [
        tvm.runtime.tensor(torch.randint(-(2**31), 2**31, [int(d) for d in t.shape]).to(torch.int32).numpy())
        for t in (x, w)
    ]
    output = tvm.runtime.empty([int(d) for d in result.shape], str(result.dtype))
    return lambda: kernel(*operands, output)


def torch_products(m: int, n: int, k: int) -> dict[str, Run]:
    """PyTorch's products by name; bf16 ones begin with ``bf16``."""
    import torch

    a, b = torch.randn(m, k), torch.randn(n, k)
    transposed = b.t().contiguous()
    out, low = torch.empty(m, n), torch.empty(m, n, dtype=torch.bfloat16)
    a16, b16, t16 = a.bfloat16(), b.bfloat16(), transposed.bfloat16()
    packed_a, packed_b = a.to_mkldnn(), b.to_mkldnn()
    return {
        "fp32 matmul": lambda: torch.matmul(a, b.t(), out=out),
        "fp32 matmul, transposed": lambda: torch.matmul(a, transposed, out=out),
        "fp32 oneDNN": lambda: torch._C._nn.mkldnn_linear(packed_a, packed_b, None),
        "bf16 matmul": lambda: torch.matmul(a16, b16.t(), out=low),
        "bf16 matmul, transposed": lambda: torch.matmul(a16, t16, out=low),
    }


def interleaved_medians(runs: dict[str, Run], turns: int) -> dict[str, float]:
    """Median seconds of a call, contenders in turn; a turn is as many calls as last ``MINIMUM_TURN_S``."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            time.sleep(PAUSE_S)
            times[name].append(_seconds_of_a_turn(run))
    return {name: statistics.median(found) for name, found in times.items()}


def _seconds_of_a_turn(run: Run) -> float:
    """Mean seconds of a call; the first, which wakes the threads, is not counted."""
    run()
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < MINIMUM_TURN_S or not calls:
        run()
        calls += 1
    return elapsed / calls


def _seconds(run: Run, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def peak_product(threads: int) -> tuple[Run, int]:
    """The same instructions on operands in the first-level cache: a run, and its multiply-accumulates."""
    products = [(our_product(m * threads, n, k), m * threads * n * k) for m, n, k in PEAK_SHAPES]
    return max(products, key=lambda product: product[1] / min(_seconds(product[0], 1) for _ in range(PEAK_TRIALS)))


def measured_ceiling(threads: int) -> float:
    """Multiply-accumulates a second of all threads, by popcounts or in tile registers; the fastest of many."""
    from fqt_deploy.targets.registry import make_target
    from tools.tile_ceiling import tile_product

    peaks = [peak_product(threads)]
    if make_target("cpu").features.has_amx:
        peaks.append(tile_product(threads))
    return max(macs / min(_seconds(run, 5) for _ in range(50)) for run, macs in peaks)


def measure(shape: tuple[int, int, int], peak: tuple[Run, int], turns: int, bits: int = 1) -> Row:
    """One row of the table, of activations of so many bits.

    The ceiling, of signs, is measured among the contenders, on the machine as it is at that moment.
    """
    m, n, k = shape
    run, macs = peak
    contenders = {"ours": our_product(m, n, k, bits), "ceiling": run, **torch_products(m, n, k)}
    seconds = interleaved_medians(contenders, turns)
    best = {dtype: min(s for name, s in seconds.items() if name.startswith(dtype)) for dtype in ("fp32", "bf16")}
    rate, ceiling = m * n * k / seconds["ours"], macs / seconds["ceiling"]
    return Row(m, n, k, seconds["ours"], best["fp32"], best["bf16"], rate / 1e9, ceiling / 1e9, rate / ceiling)


def main() -> int:
    """Print the table and the line of JSON."""
    parser = bench_parser(__doc__)
    parser.add_argument(
        "--activation-bits", type=int, choices=[1, 2, 3, 4, 8], default=1, help="width of the rows (default: 1, signs)"
    )
    arguments = parser.parse_args()
    use_threads(arguments.threads)

    peak = peak_product(arguments.threads)
    print(f"{'M, N, K':>20} {'ours ms':>9} {'G MAC/s':>9} {'ceiling':>8} {'fp32 ms':>9} {'x fp32':>7} {'x bf16':>7}")
    rows = []
    for shape in SHAPES:
        row = measure(shape, peak, arguments.turns, arguments.activation_bits)
        rows.append(row)
        print(
            f"{row.m:8d},{row.n:5d},{row.k:5d} {1e3 * row.ours_s:9.3f} {row.gmacs:9.0f} {row.share_of_ceiling:8.0%} "
            f"{1e3 * row.fp32_s:9.2f} {row.ratio_fp32:7.1f} {row.bf16_s / row.ours_s:7.1f}",
            flush=True,
        )
    summary = {
        "threads": arguments.threads,
        "activation_bits": arguments.activation_bits,
        "ceiling_gmacs": statistics.median(row.ceiling_gmacs for row in rows),
        "lowest_share_of_ceiling": min(row.share_of_ceiling for row in rows),
        "geomean_ratio_fp32": statistics.geometric_mean(row.ratio_fp32 for row in rows),
        "geomean_ratio_bf16": statistics.geometric_mean(row.bf16_s / row.ours_s for row in rows),
        "rows": [asdict(row) for row in rows],
    }
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
