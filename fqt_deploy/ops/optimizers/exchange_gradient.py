"""``fqt::exchange_gradient``: the mean of a gradient over all processes that train together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.EXCHANGE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class ExchangeGradient(FqtOp):
    """``grad * share`` in memory of its own, which the runtime replaces by the sum over all processes: the mean.

    One process alone has nothing to exchange: the reference, the kernel and the ONNX body are those of one.

    Attributes:
        grad: [...] float32.
        share: [] float32, 1 / number of processes, as ``process_share`` gives it.

    Returns:
        [...] float32.
    """

    grad: Operand
    share: Operand

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        return self.grad * self.share

    def fake(self) -> Tensor:
        """Shape rule: a tensor like ``grad``."""
        if self.share.ndim:
            raise ValueError("the share is a scalar")
        return self.grad.new_empty(tuple(self.grad.shape))

    def compute(self) -> te.Tensor:
        """The loop nest: element-wise."""
        return te.compute(self.grad.shape, lambda *i: self.grad[i] * self.share(), name="exchange_gradient")

    def cost(self) -> Cost:
        """The cost: one tensor is read and one is written."""
        return Cost(flops=self.grad.numel(), bytes_moved=2 * tensor_bytes(self.grad))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: a matrix, a filter, odd sizes, one element."""
        g = torch.Generator().manual_seed(0)
        for shape in ((16, 32), (7, 3, 3, 5), (33,), (1,)):
            yield torch.randn(shape, generator=g), torch.tensor(1 / len(shape))

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: element-wise."""
        return op("Mul", self.grad, self.share)
