"""Common parts of both selections: indices, slots and weights from the groups that are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body


def selected(kept: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Index of the kept groups, ascending; each group's slot among them, or -1; weight of the kept ones.

    Args:
        kept: [G] bool.
        weight: [G] float32.
    """
    index = kept.nonzero().flatten().int()
    slot = torch.where(kept, kept.long().cumsum(0) - 1, -1).int()
    return index, slot, weight[index.long()]


def selected_shapes(score: Tensor, keep: int, parts: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Shape rule of both selections: [parts * G] -> [parts * K], [parts * G], [parts * K]."""
    if score.ndim != 1 or parts < 1 or score.shape[0] % parts or not 1 <= keep <= score.shape[0] // parts:
        raise ValueError(f"cannot keep {keep} of {tuple(score.shape)} groups in {parts} parts")
    return (
        score.new_empty(parts * keep, dtype=torch.int32),
        torch.empty_like(score, dtype=torch.int32),
        score.new_empty(parts * keep),
    )


def selected_compute(kept: te.Tensor, weight: Any, keep: int, name: str) -> tuple[te.Tensor, ...]:
    """The loop nests of ``selected``, from a 0/1 int32 stage ``kept`` [parts, G] and an expression ``weight(p, i)``."""
    parts, groups = (int(extent) for extent in kept.shape)
    j = te.reduce_axis((0, groups), "j")
    before = te.compute(
        (parts, groups), lambda p, i: te.sum(tirx.Select(j < i, kept[p, j], 0), axis=j), name=f"{name}_before"
    )

    def place(n: Any) -> Any:
        part, group = tirx.floordiv(n, groups), tirx.floormod(n, groups)
        return tirx.Select(kept[part, group] > 0, part * keep + before[part, group], -1)

    slot = te.compute((parts * groups,), place, name=f"{name}_slot")
    i = te.reduce_axis((0, groups), "i")

    def number(k: Any) -> Any:
        first = tirx.floordiv(k, keep) * groups
        return te.sum(tirx.Select(slot[first + i].equal(k), first + i, 0), axis=i)

    index = te.compute((parts * keep,), number, name=f"{name}_index")

    def factor(k: Any) -> Any:
        return weight(tirx.floordiv(index[k], groups), tirx.floormod(index[k], groups))

    return index, slot, te.compute((parts * keep,), factor, name=f"{name}_weight")


def ranked(first_precedes: Any, parts: int, groups: int, name: str) -> te.Tensor:
    """The stage [parts, G] int32 of ranks, how many groups of a part precede each.

    Args:
        first_precedes: ``first_precedes(part, j, i)``, a total order.
        parts: of the groups.
        groups: of each part.
        name: of the stage.
    """
    j = te.reduce_axis((0, groups), "j")
    return te.compute(
        (parts, groups), lambda p, i: te.sum(tirx.Select(first_precedes(p, j, i), 1, 0), axis=j), name=name
    )


def selected_onnx(op: Body, picked: str, groups: str) -> tuple[str, str]:
    """Index and slot of the groups ``picked`` ([K] int64, any order) out of ``groups`` ([1] int64), int32."""
    count = op.extent(picked, 0)
    ascending, _ = op.several("TopK", picked, count, outputs=2, axis=0, largest=0, sorted=1)
    none = op("Expand", op.constant(-1, "int32"), groups)
    slot = op("ScatterElements", none, ascending, op.cast(op.range(count), "int32"), axis=0)
    return op.cast(ascending, "int32"), slot
