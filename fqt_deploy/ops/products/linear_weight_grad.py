"""``fqt::linear_weight_grad``: gradient of ``linear`` with respect to its weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, summed


@define(
    kind=Kind.PRODUCT, batch=summed("x", "g"), zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE
)
class LinearWeightGrad(FqtOp):
    """The transpose of ``g`` times ``x``.

    Attributes:
        x: [R, I] float32.
        g: [R, O] float32.

    Returns:
        [O, I] float32.
    """

    x: Operand
    g: Operand

    tolerance = 1e-4

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        return (self.g.t() @ self.x).contiguous()

    def fake(self) -> Tensor:
        """Shape rule: [R, I], [R, O] -> [O, I]."""
        if self.x.dim() != 2 or self.g.dim() != 2 or self.x.shape[0] != self.g.shape[0]:
            raise ValueError(f"operands {tuple(self.x.shape)} and {tuple(self.g.shape)} do not match")
        return self.x.new_empty((self.g.shape[1], self.x.shape[1]))

    def compute(self) -> te.Tensor:
        """The loop nest: sum of products."""
        k = te.reduce_axis((0, int(self.x.shape[0])), "k")
        return te.compute(
            (int(self.g.shape[1]), int(self.x.shape[1])),
            lambda o, i: te.sum(self.x[k, i] * self.g[k, o], axis=k),
            name="linear_weight_grad",
        )

    def cost(self) -> Cost:
        """The cost: two operations a multiply-accumulate."""
        return Cost(flops=2 * self.x.numel() * self.g.shape[1], bytes_moved=tensor_bytes(self.x, self.g, self.fake()))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: full and odd extents, one row, one output."""
        r = torch.Generator().manual_seed(0)
        for rows, i, o in ((8, 32, 16), (5, 33, 10), (1, 7, 3), (4, 64, 1)):
            yield torch.randn(rows, i, generator=r), torch.randn(rows, o, generator=r)

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: a matrix product."""
        return op("Gemm", self.g, self.x, transA=1)
