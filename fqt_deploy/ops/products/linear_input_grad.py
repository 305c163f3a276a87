"""``fqt::linear_input_grad``: gradient of ``linear`` with respect to its input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, Layout, Nan, leads, zero_with_any


@define(
    kind=Kind.PRODUCT, batch=leads("g"), zero=zero_with_any("g"), sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE
)
class LinearInputGrad(FqtOp):
    """The product of ``g`` and ``w``.

    Attributes:
        g: [R, O] float32.
        w: [O, I] float32.

    Returns:
        [R, I] float32.
    """

    g: Operand
    w: Operand

    tolerance = 1e-4

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        return self.g @ self.w

    def fake(self) -> Tensor:
        """Shape rule: [R, O], [O, I] -> [R, I]."""
        if self.g.dim() != 2 or self.w.dim() != 2 or self.g.shape[1] != self.w.shape[0]:
            raise ValueError(f"operands {tuple(self.g.shape)} and {tuple(self.w.shape)} do not match")
        return self.g.new_empty((self.g.shape[0], self.w.shape[1]))

    def compute(self) -> te.Tensor:
        """The loop nest: sum of products."""
        k = te.reduce_axis((0, int(self.g.shape[1])), "k")
        return te.compute(
            (int(self.g.shape[0]), int(self.w.shape[1])),
            lambda r, i: te.sum(self.g[r, k] * self.w[k, i], axis=k),
            name="linear_input_grad",
        )

    def cost(self) -> Cost:
        """The cost: two operations a multiply-accumulate."""
        return Cost(flops=2 * self.g.numel() * self.w.shape[1], bytes_moved=tensor_bytes(self.g, self.w, self.fake()))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: full and odd extents, one row, one output."""
        r = torch.Generator().manual_seed(0)
        for rows, i, o in ((8, 32, 16), (5, 33, 10), (1, 7, 3), (4, 64, 1)):
            yield torch.randn(rows, o, generator=r), torch.randn(o, i, generator=r)

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: a matrix product."""
        return op("MatMul", self.g, self.w)
