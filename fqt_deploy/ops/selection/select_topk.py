"""``fqt::select_topk``: keep the groups of largest score; biased, what the paper's released code does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.lib.selection import ranked, selected, selected_compute, selected_onnx, selected_shapes
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.PRODUCT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class SelectTopk(FqtOp):
    """The ``keep`` largest; of equal scores the first.

    Attributes:
        score: [G] float32.
        keep: K.

    Returns:
        index: [K] int32, ascending. slot: [G] int32, position in ``index`` or -1. weight: [K] float32, all 1.
    """

    score: Operand
    keep: int

    def reference(self) -> tuple[Tensor, Tensor, Tensor]:
        """The result in plain PyTorch."""
        order = torch.sort(self.score, descending=True, stable=True).indices
        kept = torch.zeros(self.score.shape, dtype=torch.bool)
        kept[order[: self.keep]] = True
        return selected(kept, torch.ones_like(self.score))

    def fake(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shape rule: [G] -> [K], [G], [K]."""
        return selected_shapes(self.score, self.keep)

    def compute(self) -> tuple[te.Tensor, ...]:
        """The loop nest: rank by counting."""
        groups = int(self.score.shape[0])

        def precedes(_: Any, j: Any, i: Any) -> Any:
            return tirx.any(self.score[j] > self.score[i], tirx.all(self.score[j].equal(self.score[i]), j < i))

        rank = ranked(precedes, 1, groups, "select_topk_rank")
        kept = te.compute((1, groups), lambda p, i: tirx.Select(rank[p, i] < self.keep, 1, 0), name="select_topk_kept")
        return selected_compute(kept, lambda _p, _i: tirx.const(1.0, "float32"), self.keep, "select_topk")

    def cost(self) -> Cost:
        """The cost: quadratic in the number of groups."""
        return Cost(flops=self.score.numel() ** 2, bytes_moved=8 * self.score.numel())

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: few and many groups, ties, zeros, everything kept."""
        g = torch.Generator().manual_seed(0)
        yield torch.rand(64, generator=g), 16
        yield torch.randint(0, 3, (33,), generator=g).float(), 8
        yield torch.zeros(10), 3
        yield torch.rand(3, generator=g), 3
        yield torch.rand(1, generator=g), 1

    def onnx_body(self, op: Body) -> tuple[str, str, str]:
        """The ONNX body: a ``TopK``, which prefers the first of equal scores, too."""
        keep = op.reshape(op.integer("keep"), 1)
        _, largest = op.several("TopK", self.score, keep, outputs=2, axis=0, largest=1, sorted=1)
        index, slot = selected_onnx(op, largest, op.extent(self.score, 0))
        return index, slot, op("Expand", op.constant(1.0, "float32"), keep)
