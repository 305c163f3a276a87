"""The breakdown of a step's time: kernels by class, their rates, and what the machine's ceilings allow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.ceilings import Ceilings, measure_ceilings

if TYPE_CHECKING:
    from fqt_deploy.capture.load_model import ModelSource
    from fqt_deploy.core.manifest import KernelInfo

CLASSES: Mapping[str, tuple[str, ...]] = {
    "1-bit products": (
        "binary_conv2d", "bitplane_conv2d_input_grad", "bitplane_weight_grad", "level_conv2d", "level_weight_grad",
    ),
    "attention": ("attention", "attention_backward"),
    "fp32 products": (
        "batch_matmul", "conv2d", "conv2d_input_grad", "conv2d_weight_grad",
        "linear", "linear_input_grad", "linear_weight_grad",
    ),
    "packing": ("pack_levels", "pack_positions", "pack_signs", "pack_weight", "transpose_packed_weight"),
    "quantizing": (
        "position_statistics", "position_sums", "quantization_grid", "quantize_channels", "quantize_pack_channels",
        "quantize_pack_samples", "quantize_samples", "tap_sums",
    ),
    "selection": ("gather_rows", "scatter_rows", "select_sampled", "select_topk", "stream_key"),
    "normalization": ("channel_gradient_sums", "channel_moments"),
    "optimizer": (
        "adam_update", "dequantize_weight_grad", "sgd_momentum_update", "sgd_update", "weight_scale",
    ),
}  # fmt: skip
"""Ops that kernels are rooted in, by class; any other kernel is element-wise work or a plain reduction."""
REST = "element-wise and sums"
_CLASS_OF = {op: name for name, ops in CLASSES.items() for op in ops}


@dataclass(frozen=True)
class ClassTime:
    """The kernels of one class.

    Attributes:
        name: the name of the class.
        calls: number of calls in one step.
        seconds: seconds in one step.
        roofline_s: the least that the machine's ceilings allow, each kernel by itself, every operand counted whole.
        gbytes_s: billions of bytes moved a second.
        gmacs: billions of multiply-accumulates a second, of fp32 and of single bits.
    """

    name: str
    calls: int
    seconds: float
    roofline_s: float
    gbytes_s: float
    gmacs: float


def break_down(kernels: Iterable[KernelInfo], seconds: Iterable[float], ceilings: Ceilings) -> list[ClassTime]:
    """The rows of the table, one for each class, the longest first."""
    groups: dict[str, list[tuple[KernelInfo, float]]] = {}
    for kernel, time in zip(kernels, seconds, strict=True):
        groups.setdefault(_CLASS_OF.get(kernel.op, REST), []).append((kernel, time))
    rows = []
    for name, members in groups.items():
        total = sum(time for _, time in members)
        roofline = sum(
            ceilings.seconds(flops=k.flops, bit_ops=k.bit_ops, bytes_moved=k.bytes_moved) for k, _ in members
        )
        moved = sum(k.bytes_moved for k, _ in members)
        macs = sum(k.flops + k.bit_ops for k, _ in members) / 2
        rows.append(ClassTime(name, len(members), total, roofline, moved / total / 1e9, macs / total / 1e9))
    return sorted(rows, key=lambda row: -row.seconds)


def break_down_artifact(artifact: Path, source: ModelSource, threads: int) -> dict[str, Any]:
    """Measure the ceilings, and every kernel of ``artifact`` on the example batch; for the benchmark's last line."""
    from fqt_deploy.compiler.profile import kernel_seconds
    from fqt_deploy.runtime.artifact import read_artifact
    from fqt_deploy.runtime.threads import configure_threads

    configure_threads()
    ceilings = measure_ceilings(threads)
    manifest, state, library = read_artifact(artifact)
    seconds = kernel_seconds(manifest, state, library, source.example_inputs)
    rows = break_down(manifest.kernels, seconds, ceilings)
    return {"ceilings": asdict(ceilings), "classes": [asdict(row) for row in rows]}


def table(classes: Iterable[Mapping[str, Any]]) -> str:
    """The rows ``classes`` as text, with their sum."""
    rows = list(classes)
    lines = [f"{'kernels':24} {'calls':>6} {'ms':>8} {'roofline':>9} {'GB/s':>7} {'G MAC/s':>8}"]
    lines += [
        f"{r['name']:24} {r['calls']:6d} {1e3 * r['seconds']:8.2f} {1e3 * r['roofline_s']:9.2f} "
        f"{r['gbytes_s']:7.1f} {r['gmacs']:8.0f}"
        for r in rows
    ]
    total, least = sum(r["seconds"] for r in rows), sum(r["roofline_s"] for r in rows)
    calls = sum(r["calls"] for r in rows)
    return "\n".join([*lines, f"{'sum':24} {calls:6d} {1e3 * total:8.2f} {1e3 * least:9.2f}"])
