"""``fqt::scatter_rows``: kept rows back in their places, zero elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.ELEMENTWISE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class ScatterRows(FqtOp):
    """Row ``slot[g]`` of ``x`` for each group, zero where the slot is negative.

    Attributes:
        x: [K, ...] of any type.
        slot: [G] int32, each in [-1, K).

    Returns:
        [G, ...] of the type of ``x``.
    """

    x: Operand
    slot: Operand

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        result = self.x.new_zeros((self.slot.shape[0], *self.x.shape[1:]))
        kept = self.slot >= 0
        result[kept] = self.x[self.slot[kept].long()]
        return result

    def fake(self) -> Tensor:
        """Shape rule: [K, ...], [G] -> [G, ...]."""
        if self.x.dim() < 1 or self.slot.dim() != 1:
            raise ValueError(f"cannot scatter rows of {tuple(self.x.shape)} to slots {tuple(self.slot.shape)}")
        return self.x.new_empty((self.slot.shape[0], *self.x.shape[1:]))

    def compute(self) -> te.Tensor:
        """The loop nest: one guarded indirect read an element."""
        shape = [int(self.slot.shape[0]), *(int(d) for d in self.x.shape[1:])]
        zero = tirx.const(0, str(self.x.dtype))

        def element(g: Any, *rest: Any) -> Any:
            return tirx.if_then_else(self.slot[g] >= 0, self.x[(self.slot[g], *rest)], zero)

        return te.compute(shape, element, name="scatter_rows")

    def cost(self) -> Cost:
        """The cost: the kept rows are read, all rows are written."""
        return Cost(bytes_moved=tensor_bytes(self.x, self.slot, self.fake()))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: every type in use, any rank, one row, all rows kept."""
        g = torch.Generator().manual_seed(0)
        some = torch.tensor([-1, 0, 1, -1, -1, 2, -1], dtype=torch.int32)
        yield torch.randn(3, 4, 16, generator=g), some
        yield torch.randn(3, generator=g), some
        yield torch.randint(-9, 9, (1, 3), generator=g, dtype=torch.int32), torch.tensor([-1, 0], dtype=torch.int32)
        yield torch.rand(3, 5, generator=g) > 0.5, some
        yield torch.randn(2, 3, 3, 2, generator=g), torch.tensor([0, 1], dtype=torch.int32)

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: a gather from the rows and one more of zeros; slot -1 is the last row."""
        extents = op.shape(1, op("Shape", self.x, start=1))
        nothing = op("Expand", op("CastLike", op.constant(0, "int32"), self.x), extents)
        return op("Gather", op("Concat", self.x, nothing, axis=0), self.slot, axis=0)
