"""``fqt::linear``: product with a transposed weight."""

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
    kind=Kind.PRODUCT, batch=leads("x"), zero=zero_with_any("x"), sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE
)
class Linear(FqtOp):
    """The product of ``x`` and the transpose of ``w``.

    Attributes:
        x: [R, I] float32.
        w: [O, I] float32.

    Returns:
        [R, O] float32.
    """

    x: Operand
    w: Operand

    tolerance = 1e-4

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        return self.x @ self.w.t()

    def fake(self) -> Tensor:
        """Shape rule: [R, I], [O, I] -> [R, O]."""
        if self.x.dim() != 2 or self.w.dim() != 2 or self.x.shape[1] != self.w.shape[1]:
            raise ValueError(f"operands {tuple(self.x.shape)} and {tuple(self.w.shape)} do not match")
        return self.x.new_empty((self.x.shape[0], self.w.shape[0]))

    def compute(self) -> te.Tensor:
        """The loop nest: sum of products."""
        k = te.reduce_axis((0, int(self.x.shape[1])), "k")
        return te.compute(
            (int(self.x.shape[0]), int(self.w.shape[0])),
            lambda r, o: te.sum(self.x[r, k] * self.w[o, k], axis=k),
            name="linear",
        )

    def cost(self) -> Cost:
        """The cost: two operations a multiply-accumulate."""
        return Cost(flops=2 * self.x.numel() * self.w.shape[0], bytes_moved=tensor_bytes(self.x, self.w, self.fake()))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: full and odd extents, one row, one output."""
        r = torch.Generator().manual_seed(0)
        for rows, i, o in ((8, 32, 16), (5, 33, 10), (1, 7, 3), (4, 64, 1)):
            yield torch.randn(rows, i, generator=r), torch.randn(o, i, generator=r)

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: a matrix product."""
        return op("Gemm", self.x, self.w, transB=1)
