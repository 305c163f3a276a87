"""The rows of a profile: every kernel belongs to one, by layer and direction or by class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fqt_deploy.core.manifest import KernelInfo
from fqt_deploy.profiling.kernel_classes import DIRECTIONS, class_of, direction_of
from fqt_deploy.profiling.step_profile import StepProfile

WHOLE = "(step)"
"""The layer of kernels that belong to no module: the loss, and what all parameters share."""


@dataclass(frozen=True)
class Row:
    """Some of a step's kernels, summed up.

    Attributes:
        layer: module path, ``WHOLE``, or the name of a class.
        direction: one of ``DIRECTIONS``; "" for a class.
        runs_as: ``1-bit``, ``fp32``, ``attention``, or of another module the class that takes most of its time.
        calls: number of kernel calls.
        seconds: in one step.
        share: of all kernels.
        roofline_s: the least that the machine's ceilings allow, each kernel by itself.
        bytes: operands and results of its kernels, each once.
        fp32_macs: multiply-accumulates in fp32.
        bit_macs: multiply-accumulates of single bits.
        torch_fp32_s: PyTorch's seconds in fp32 for the same; None where there is no counterpart.
        torch_bf16_s: the same in bf16.
    """

    layer: str
    direction: str
    runs_as: str
    calls: int
    seconds: float
    share: float
    roofline_s: float
    bytes: int
    fp32_macs: int
    bit_macs: int
    torch_fp32_s: float | None = None
    torch_bf16_s: float | None = None

    @property
    def roofline_share(self) -> float:
        """How near it comes to the ceilings: 1 is as fast as they allow; more comes from caches."""
        return self.roofline_s / self.seconds if self.seconds else 0.0

    @property
    def speedup(self) -> float | None:
        """How many times as long PyTorch takes in fp32."""
        return self.torch_fp32_s / self.seconds if self.torch_fp32_s is not None and self.seconds else None


def layer_rows(profile: StepProfile) -> list[Row]:
    """A row for each layer and direction that has kernels, in the order of the model."""
    decided = {kernel.layer: "attention" for kernel in profile.kernels if class_of(kernel.op) == "attention"}
    decided |= {layer.path: layer.decision for layer in profile.layers}
    rows = []
    for names, members in _grouped(profile, lambda k: (k.layer or WHOLE, direction_of(k))).items():
        theirs = [profile.torch.layer(mode, *names) for mode in ("fp32", "bf16")]
        runs_as = decided.get(names[0]) or _main_class(profile, members)
        row = _row(profile, names, members, runs_as)
        rows.append(replace(row, torch_fp32_s=theirs[0], torch_bf16_s=theirs[1]))
    place = {layer: i for i, layer in enumerate(in_model_order(dict.fromkeys(row.layer for row in rows)))}
    return sorted(rows, key=lambda row: (place[row.layer], DIRECTIONS.index(row.direction)))


def in_model_order(paths: Iterable[str]) -> list[str]:
    """The module paths as a person reads the model: a module after those within it, numbers in order, the step last.

    Args:
        paths: in the order of their first kernels, which places what has no number; a layer that only works in
            backward, such as a ReLU, has its first kernel late.
    """
    tree: dict[str, Any] = {}
    for path in paths:
        node = tree
        for name in path.split(".") if path != WHOLE else (WHOLE,):
            node = node.setdefault(name, {})
        node[""] = path
    step = tree.pop(WHOLE, {})
    return [*_flattened(tree), *_flattened(step)]


def _flattened(node: dict[str, Any]) -> Iterator[str]:
    names = [name for name in node if name]
    for name in sorted(names, key=int) if all(map(str.isdecimal, names)) else names:
        yield from _flattened(node[name])
    if "" in node:
        yield node[""]


def class_rows(profile: StepProfile) -> list[Row]:
    """A row for each class of kernels, the longest first."""
    groups = _grouped(profile, lambda kernel: (class_of(kernel.op), ""))
    rows = [_row(profile, names, members, names[0]) for names, members in groups.items()]
    return sorted(rows, key=lambda row: -row.seconds)


SORTS: dict[str, Callable[[Row], float]] = {
    "time": lambda row: -row.seconds,
    "bytes": lambda row: -row.bytes,
    "macs": lambda row: -(row.fp32_macs + row.bit_macs),
    "roofline": lambda row: row.roofline_share,
    "speedup": lambda row: row.speedup if row.speedup is not None else float("inf"),
}
"""The orders of rows, by name, besides that of the model: what deserves a look comes first."""


def _grouped(profile: StepProfile, key: Callable[[KernelInfo], tuple[str, str]]) -> dict[tuple[str, str], list[int]]:
    groups: dict[tuple[str, str], list[int]] = {}
    for i, kernel in enumerate(profile.kernels):
        groups.setdefault(key(kernel), []).append(i)
    return groups


def _row(profile: StepProfile, names: tuple[str, str], members: list[int], runs_as: str) -> Row:
    kernels, seconds = [profile.kernels[i] for i in members], sum(profile.seconds[i] for i in members)
    roofline = profile.ceilings.seconds
    return Row(
        layer=names[0],
        direction=names[1],
        runs_as=runs_as,
        calls=len(kernels),
        seconds=seconds,
        share=seconds / (profile.kernels_s or 1.0),
        roofline_s=sum(roofline(flops=k.flops, bit_ops=k.bit_ops, bytes_moved=k.bytes_moved) for k in kernels),
        bytes=sum(k.bytes_moved for k in kernels),
        fp32_macs=sum(k.flops for k in kernels) // 2,
        bit_macs=sum(k.bit_ops for k in kernels) // 2,
    )


def _main_class(profile: StepProfile, members: Iterable[int]) -> str:
    seconds: dict[str, float] = {}
    for i in members:
        name = class_of(profile.kernels[i].op)
        seconds[name] = seconds.get(name, 0.0) + profile.seconds[i]
    return max(seconds, key=lambda name: seconds[name])
