"""``fqt::batch_matmul``: one matrix product a sample."""

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
    kind=Kind.PRODUCT,
    batch=leads("a", "b"),
    zero=zero_with_any("a", "b"),
    sign=ANY_SIGN,
    nan=Nan.UNKNOWN,
    layout=Layout.OPAQUE,
)
class BatchMatmul(FqtOp):
    """The products of corresponding matrices.

    Attributes:
        a: [B, M, K] float32.
        b: [B, K, N] float32.

    Returns:
        [B, M, N] float32.
    """

    a: Operand
    b: Operand

    tolerance = 1e-4

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        return torch.bmm(self.a, self.b)

    def fake(self) -> Tensor:
        """Shape rule: [B, M, K], [B, K, N] -> [B, M, N]."""
        if (
            self.a.dim() != 3
            or self.b.dim() != 3
            or self.a.shape[0] != self.b.shape[0]
            or self.a.shape[2] != self.b.shape[1]
        ):
            raise ValueError(f"operands {tuple(self.a.shape)} and {tuple(self.b.shape)} do not match")
        return self.a.new_empty((self.a.shape[0], self.a.shape[1], self.b.shape[2]))

    def compute(self) -> te.Tensor:
        """The loop nest: sum of products."""
        k = te.reduce_axis((0, int(self.a.shape[2])), "k")
        return te.compute(
            (int(self.a.shape[0]), int(self.a.shape[1]), int(self.b.shape[2])),
            lambda s, m, n: te.sum(self.a[s, m, k] * self.b[s, k, n], axis=k),
            name="batch_matmul",
        )

    def cost(self) -> Cost:
        """The cost: two operations a multiply-accumulate."""
        return Cost(flops=2 * self.a.numel() * self.b.shape[2], bytes_moved=tensor_bytes(self.a, self.b, self.fake()))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: full and odd extents, single elements."""
        r = torch.Generator().manual_seed(0)
        for batch, m, k, n in ((2, 4, 32, 16), (3, 5, 7, 9), (1, 1, 1, 1)):
            yield torch.randn(batch, m, k, generator=r), torch.randn(batch, k, n, generator=r)

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: a matrix product for each sample."""
        return op("MatMul", self.a, self.b)
