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


def selected_shapes(score: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Shape rule of both selections: [G] -> [K], [G], [K]."""
    if score.ndim != 1 or not 1 <= keep <= score.shape[0]:
        raise ValueError(f"cannot keep {keep} of {tuple(score.shape)} groups")
    return (
        score.new_empty(keep, dtype=torch.int32),
        torch.empty_like(score, dtype=torch.int32),
        score.new_empty(keep),
    )


def selected_compute(kept: te.Tensor, weight: Any, keep: int, name: str) -> tuple[te.Tensor, ...]:
    """The loop nests of ``selected``, from a 0/1 int32 stage ``kept`` [G] and an expression ``weight(i)``."""
    groups = int(kept.shape[0])
    j = te.reduce_axis((0, groups), "j")
    before = te.compute((groups,), lambda i: te.sum(tirx.Select(j < i, kept[j], 0), axis=j), name=f"{name}_before")
    slot = te.compute((groups,), lambda i: tirx.Select(kept[i] > 0, before[i], -1), name=f"{name}_slot")
    i = te.reduce_axis((0, groups), "i")
    index = te.compute((keep,), lambda k: te.sum(tirx.Select(slot[i].equal(k), i, 0), axis=i), name=f"{name}_index")
    return index, slot, te.compute((keep,), lambda k: weight(index[k]), name=f"{name}_weight")


def ranked(first_precedes: Any, groups: int, name: str) -> te.Tensor:
    """The stage [G] int32 of ranks, how many groups precede each; ``first_precedes(j, i)`` is a total order."""
    j = te.reduce_axis((0, groups), "j")
    return te.compute((groups,), lambda i: te.sum(tirx.Select(first_precedes(j, i), 1, 0), axis=j), name=name)


def selected_onnx(op: Body, picked: str, groups: str) -> tuple[str, str]:
    """Index and slot of the groups ``picked`` ([K] int64, any order) out of ``groups`` ([1] int64), int32."""
    count = op.extent(picked, 0)
    ascending, _ = op.several("TopK", picked, count, outputs=2, axis=0, largest=0, sorted=1)
    none = op("Expand", op.constant(-1, "int32"), groups)
    slot = op("ScatterElements", none, ascending, op.cast(op.range(count), "int32"), axis=0)
    return op.cast(ascending, "int32"), slot
