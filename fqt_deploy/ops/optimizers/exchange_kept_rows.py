"""``fqt::exchange_kept_rows``: the mean over all processes of a gradient most of whose rows are zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.EXCHANGE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class ExchangeKeptRows(FqtOp):
    """``exchange_gradient`` of a gradient that has only rows ``kept``: these are all that the others need to be sent.

    No zero is negative, so that a row that one process alone has kept gets the same bits where it is and where it is
    added to zeros.

    Attributes:
        grad: [O, J] float32; rows that are not kept are zero.
        share: [] float32, 1 / number of processes, as ``process_share`` gives it.
        kept: [K] int32, numbers of the kept rows, each once; read by the runtime alone.

    Returns:
        [O, J] float32.
    """

    exchanged_rows: ClassVar[str | None] = "kept"

    grad: Operand
    share: Operand
    kept: Operand

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        mean = self.grad * self.share
        return torch.where(mean == 0, 0.0, mean)

    def fake(self) -> Tensor:
        """Shape rule: a tensor like ``grad``."""
        if self.share.ndim:
            raise ValueError("the share is a scalar")
        if self.grad.ndim != 2 or self.kept.ndim != 1 or self.kept.shape[0] > self.grad.shape[0]:
            raise ValueError(f"rows {tuple(self.kept.shape)} are none of {tuple(self.grad.shape)}")
        return self.grad.new_empty(tuple(self.grad.shape))

    def compute(self) -> te.Tensor:
        """The loop nest: element-wise."""

        def element(*i: Any) -> Any:
            mean = self.grad[i] * self.share()
            return tirx.Select(mean == 0, tirx.const(0, "float32"), mean)  # "+ 0" would be simplified away

        return te.compute(self.grad.shape, element, name="exchange_kept_rows")

    def cost(self) -> Cost:
        """The cost: one tensor is read and one is written."""
        return Cost(flops=self.grad.numel(), bytes_moved=2 * tensor_bytes(self.grad))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: some rows, one, all."""
        g = torch.Generator().manual_seed(0)
        for rows, elements, kept in ((16, 32, [0, 3, 5, 15]), (7, 45, [2]), (3, 1, [0, 1, 2])):
            grad = torch.zeros(rows, elements)
            grad[kept] = torch.randn(len(kept), elements, generator=g)
            grad[kept[0], 0] = -0.0
            yield grad, torch.tensor(1 / rows), torch.tensor(kept, dtype=torch.int32)

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: element-wise; nothing is exchanged there, and zeros may keep their signs."""
        return op("Mul", self.grad, self.share)
