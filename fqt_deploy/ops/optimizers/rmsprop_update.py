"""``fqt::rmsprop_update``: one step of RMSprop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.optimizers.update_op import DecayedGradient, UpdateOp
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.UPDATE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class RmspropUpdate(DecayedGradient, UpdateOp):
    """The update that ``torch.optim.RMSprop`` without momentum, not centered, makes of a parameter.

    Attributes:
        param: [...] float32.
        v: [...] float32, running mean of the gradient's square.
        grad: [...] float32.
        lr: [G] float32, learning rates of the parameter groups.
        step: [] int64, number of this step, from 1.
        group: which learning rate.
        alpha: decay of ``v``.
        eps: added to the denominator.
        weight_decay: zero for none.
        every: update at each multiple of this many steps.

    Returns:
        New param and v, [...] float32 each.
    """

    scales_gradient = True

    param: Operand
    v: Operand
    grad: Operand
    lr: Operand
    step: Operand
    group: int
    alpha: float
    eps: float
    weight_decay: float
    every: int

    def reference(self) -> tuple[Tensor, Tensor]:
        """The result in plain PyTorch."""
        gradient = self.gradient()
        v = self.alpha * self.v + (1 - self.alpha) * gradient * gradient
        param = self.param - self.lr[self.group] * (gradient / (v.sqrt() + self.eps))
        return self.due(param, self.param), self.due(v, self.v)

    def fake(self) -> tuple[Tensor, Tensor]:
        """Shape rule: two tensors like ``param``."""
        self.fits((self.param, self.v), self.grad, self.lr, self.group)
        return self.param.new_empty(tuple(self.param.shape)), self.param.new_empty(tuple(self.param.shape))

    def compute(self) -> tuple[te.Tensor, ...]:
        """The new mean square, then one loop nest that overwrites parameter and mean square."""
        new_v = te.compute(
            self.param.shape,
            lambda *i: self.alpha * self.v[i] + (1 - self.alpha) * self.te_gradient(i) * self.te_gradient(i),
            name="rmsprop_update_v",
        )

        def updated(*i: Any) -> Any:
            param = self.param[i] - self.lr[self.group] * (self.te_gradient(i) / (tirx.sqrt(new_v[i]) + self.eps))
            return self.te_due(param, self.param[i]), self.te_due(new_v[i], self.v[i])

        return tuple(te.compute(self.param.shape, updated, name="rmsprop_update"))

    def cost(self) -> Cost:
        """The cost: three tensors are read and two are written."""
        return Cost(flops=10 * self.param.numel(), bytes_moved=5 * tensor_bytes(self.param))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: with and without decay, two groups, odd shapes, a step without an update."""
        g = torch.Generator().manual_seed(0)
        rates = torch.tensor([1e-3, 1e-1])
        cases = (((16, 32, 3, 3), 1, 0, 0.0, 1), ((7, 5), 3, 1, 1e-2, 1), ((33,), 4, 1, 0.1, 2), ((5,), 3, 0, 0.1, 2))
        for shape, step, group, decay, every in cases:
            param, grad = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
            v = torch.rand(shape, generator=g)
            yield param, v, grad, rates, torch.tensor(step), group, 0.99, 1e-8, decay, every

    def onnx_body(self, op: Body) -> tuple[str, str]:
        """The ONNX body: element-wise."""
        alpha, rate = op.double("alpha"), op("Gather", self.lr, op.integer("group"), axis=0)
        new = op.cast(op("Sub", op.constant(1.0, "float64"), alpha), "float32")
        gradient = self.onnx_gradient(op)
        square = op("Mul", op("Mul", gradient, new), gradient)
        v = op("Add", op("Mul", self.v, op.cast(alpha, "float32")), square)
        scaled = op("Div", gradient, op("Add", op("Sqrt", v), op.float("eps")))
        param = op("Sub", self.param, op("Mul", scaled, rate))
        return self.onnx_due(op, param, self.param), self.onnx_due(op, v, self.v)
