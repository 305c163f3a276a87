"""``fqt::accumulate_gradient``: the mean of several batches' gradients, summed up batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Attributes, Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.UPDATE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class AccumulateGradient(FqtOp):
    """``sum + grad / every``; the first of each ``every`` steps forgets the sum.

    Attributes:
        sum: [...] float32, the sum so far; not read at the first of ``every`` steps.
        grad: [...] float32.
        step: [] int64, number of this step, from 1.
        every: number of steps that are summed up.

    Returns:
        The new sum, [...] float32; the mean of the gradients when ``step`` is a multiple of ``every``.
    """

    sum: Operand
    grad: Operand
    step: Operand
    every: int

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        share = self.grad * (1 / self.every)
        return torch.where((self.step - 1) % self.every == 0, share, self.sum + share)

    def fake(self) -> Tensor:
        """Shape rule: a tensor like ``sum``."""
        if self.sum.shape != self.grad.shape or self.step.dim() != 0 or self.every < 1:
            raise ValueError(f"sum {tuple(self.sum.shape)} and gradient {tuple(self.grad.shape)} do not match")
        return self.sum.new_empty(tuple(self.sum.shape))

    def compute(self) -> te.Tensor:
        """The loop nest: element-wise; overwrites the sum in place."""

        def summed(*i: Any) -> Any:
            share = self.grad[i] * tirx.const(1 / self.every, "float32")
            first = tirx.floormod(self.step() - 1, tirx.const(self.every, "int64")).equal(0)
            return tirx.Select(first, share, self.sum[i] + share)

        return te.compute(self.sum.shape, summed, name="accumulate_gradient")

    def cost(self) -> Cost:
        """The cost: two tensors are read and one is written."""
        return Cost(flops=2 * self.sum.numel(), bytes_moved=3 * tensor_bytes(self.sum))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: the first and later steps of a sum, one step a sum, a sum that is not to be read."""
        g = torch.Generator().manual_seed(0)
        for shape, step, every in (((16, 18), 1, 4), ((7, 5), 6, 4), ((33,), 8, 4), ((1,), 3, 1)):
            sums, grad = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
            if step == 1:
                sums.fill_(float("nan"))
            yield sums, grad, torch.tensor(step), every

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: element-wise."""
        share = op("Mul", self.grad, op.float("share"))
        phase = op("Mod", op("Sub", self.step, op.constant(1, "int64")), op.integer("every"))
        return op("Where", op("Equal", phase, op.constant(0, "int64")), share, op("Add", self.sum, share))

    def onnx_attributes(self) -> Attributes:
        """Besides the number of steps the share of each."""
        return {"every": self.every, "share": 1 / self.every}
