"""The breakdown of a step's time: kernels by class, their rates, and what the machine's ceilings allow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fqt_deploy.profiling.kernel_classes import class_of
from tools.ceilings import Ceilings, measure_ceilings

if TYPE_CHECKING:
    from fqt_deploy.core.manifest import KernelInfo


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
        groups.setdefault(class_of(kernel.op), []).append((kernel, time))
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


def break_down_artifact(artifact: Path, threads: int) -> dict[str, Any]:
    """Measure the ceilings, and every kernel of ``artifact``; for the benchmark's last line."""
    from fqt_deploy.profiling.profile_artifact import profile_artifact
    from fqt_deploy.runtime.threads import configure_threads

    configure_threads()
    ceilings = measure_ceilings(threads)
    profile = profile_artifact(artifact)
    rows = break_down(profile.kernels, profile.seconds, ceilings)
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
