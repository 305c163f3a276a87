"""``fqt::select_topk``: keep the groups of largest score; biased, what the paper's released code does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.lib.selection import ranked, selected, selected_compute, selected_onnx, selected_shapes
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec


def reference(score: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``keep`` largest; of equal scores the first.

    Args:
        score: [G] float32.
        keep: K.

    Returns:
        index: [K] int32, ascending. slot: [G] int32, position in ``index`` or -1. weight: [K] float32, all 1.
    """
    order = torch.sort(score, descending=True, stable=True).indices
    kept = torch.zeros(score.shape, dtype=torch.bool)
    kept[order[:keep]] = True
    return selected(kept, torch.ones_like(score))


def fake(score: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Shape rule: [G] -> [K], [G], [K]."""
    return selected_shapes(score, keep)


def compute(score: te.Tensor, keep: int) -> tuple[te.Tensor, ...]:
    """Rank by counting."""
    groups = int(score.shape[0])

    def precedes(j: Any, i: Any) -> Any:
        return tirx.any(score[j] > score[i], tirx.all(score[j].equal(score[i]), j < i))

    rank = ranked(precedes, groups, "select_topk_rank")
    kept = te.compute((groups,), lambda i: tirx.Select(rank[i] < keep, 1, 0), name="select_topk_kept")
    return selected_compute(kept, lambda _: tirx.const(1.0, "float32"), keep, "select_topk")


def cost(score: Tensor, keep: int) -> Cost:
    """Quadratic in the number of groups."""
    return Cost(flops=score.numel() ** 2, bytes_moved=8 * score.numel())


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Few and many groups, ties, zeros, everything kept."""
    g = torch.Generator().manual_seed(0)
    yield torch.rand(64, generator=g), 16
    yield torch.randint(0, 3, (33,), generator=g).float(), 8
    yield torch.zeros(10), 3
    yield torch.rand(3, generator=g), 3
    yield torch.rand(1, generator=g), 1


def onnx_body(op: Body, score: str) -> tuple[str, str, str]:
    """``TopK`` prefers the first of equal scores, too."""
    keep = op.reshape(op.integer("keep"), 1)
    _, largest = op.several("TopK", score, keep, outputs=2, axis=0, largest=1, sorted=1)
    index, slot = selected_onnx(op, largest, op.extent(score, 0))
    return index, slot, op("Expand", op.constant(1.0, "float32"), keep)


select_topk = OpSpec(
    "select_topk", OpKind.PRODUCT, reference, fake, compute, cost, sample_inputs, onnx=OnnxFunction(onnx_body)
).register()
