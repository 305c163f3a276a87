"""``fqt::sgd_update``: one step of plain gradient descent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.optimizers.update_op import DecayedGradient, UpdateOp
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.UPDATE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class SgdUpdate(DecayedGradient, UpdateOp):
    """The update that ``torch.optim.SGD`` without momentum makes of a parameter.

    Attributes:
        param: [...] float32.
        grad: [...] float32.
        lr: [G] float32, learning rates of the parameter groups.
        step: [] int64, number of this step, from 1.
        group: which learning rate.
        weight_decay: zero for none.
        every: update at each multiple of this many steps.

    Returns:
        [...] float32.
    """

    scales_gradient = False

    param: Operand
    grad: Operand
    lr: Operand
    step: Operand
    group: int
    weight_decay: float
    every: int

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        param = self.param - self.lr[self.group] * self.gradient()
        return self.due(param, self.param)

    def fake(self) -> Tensor:
        """Shape rule: a tensor like ``param``."""
        self.fits((self.param,), self.grad, self.lr, self.group)
        return self.param.new_empty(tuple(self.param.shape))

    def compute(self) -> te.Tensor:
        """The loop nest: element-wise; may overwrite the parameter in place."""

        def updated(*i: Any) -> Any:
            gradient = self.te_gradient(i)
            return self.te_due(self.param[i] - self.lr[self.group] * gradient, self.param[i])

        return te.compute(self.param.shape, updated, name="sgd_update")

    def cost(self) -> Cost:
        """The cost: two tensors are read and one is written."""
        return Cost(flops=4 * self.param.numel(), bytes_moved=3 * tensor_bytes(self.param))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: with and without decay, two groups, odd shapes, an update for several steps, none."""
        g = torch.Generator().manual_seed(0)
        rates = torch.tensor([1e-3, 1e-1])
        cases = (
            ((16, 32, 3, 3), 1, 0, 0.0, 1),
            ((7, 5), 3, 1, 1e-2, 1),
            ((1,), 4, 1, 0.0, 2),
            ((7, 5), 3, 1, 1e-2, 2),
        )
        for shape, step, group, decay, every in cases:
            param, grad = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
            yield param, grad, rates, torch.tensor(step), group, decay, every

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: element-wise."""
        gradient = self.onnx_gradient(op)
        param = op("Sub", self.param, op("Mul", gradient, op("Gather", self.lr, op.integer("group"), axis=0)))
        return self.onnx_due(op, param, self.param)
