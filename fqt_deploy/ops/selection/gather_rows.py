"""``fqt::gather_rows``: the kept rows of a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import NEVER_ZERO, Layout, Nan, keeps_sign, no_samples


@define(
    kind=Kind.ELEMENTWISE,
    batch=no_samples,
    zero=NEVER_ZERO,
    sign=keeps_sign("x"),
    nan=Nan.UNKNOWN,
    layout=Layout.OPAQUE,
)
class GatherRows(FqtOp):
    """The rows ``index`` of ``x``.

    Attributes:
        x: [G, ...] of any type.
        index: [K] int32, each in [0, G).

    Returns:
        [K, ...] of the type of ``x``.
    """

    x: Operand
    index: Operand

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        return self.x[self.index.long()].contiguous()

    def fake(self) -> Tensor:
        """Shape rule: [G, ...], [K] -> [K, ...]."""
        if self.x.dim() < 1 or self.index.dim() != 1:
            raise ValueError(f"cannot gather rows {tuple(self.index.shape)} of {tuple(self.x.shape)}")
        return self.x.new_empty((self.index.shape[0], *self.x.shape[1:]))

    def compute(self) -> te.Tensor:
        """The loop nest: one indirect read an element."""
        shape = [int(self.index.shape[0]), *(int(d) for d in self.x.shape[1:])]
        return te.compute(shape, lambda k, *rest: self.x[(self.index[k], *rest)], name="gather_rows")

    def cost(self) -> Cost:
        """The cost: only the kept rows are read."""
        return Cost(bytes_moved=tensor_bytes(self.index) + 2 * tensor_bytes(self.fake()))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: every type in use, any rank, repeated and single rows."""
        g = torch.Generator().manual_seed(0)
        some = torch.tensor([0, 2, 3, 6], dtype=torch.int32)
        yield torch.randn(7, 4, 16, generator=g), some
        yield torch.randn(7, generator=g), some
        yield torch.randint(-9, 9, (7, 3), generator=g, dtype=torch.int32), torch.tensor([5], dtype=torch.int32)
        yield torch.rand(7, 5, generator=g) > 0.5, some
        yield torch.randint(-9, 9, (7, 2, 2, 3), generator=g), torch.tensor([6, 6, 0], dtype=torch.int32)

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: a gather."""
        return op("Gather", self.x, self.index, axis=0)
