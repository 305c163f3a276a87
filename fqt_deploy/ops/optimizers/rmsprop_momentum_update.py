"""``fqt::rmsprop_momentum_update``: one step of RMSprop with momentum."""

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
class RmspropMomentumUpdate(DecayedGradient, UpdateOp):
    """The update that ``torch.optim.RMSprop`` with momentum, not centered, makes of a parameter.

    Attributes:
        param: [...] float32.
        v: [...] float32, running mean of the gradient's square.
        buf: [...] float32, momentum.
        grad: [...] float32.
        lr: [G] float32, learning rates of the parameter groups.
        step: [] int64, number of this step, from 1.
        group: which learning rate.
        alpha: decay of ``v``.
        eps: added to the denominator.
        momentum: decay of ``buf``.
        weight_decay: zero for none.
        every: update at each multiple of this many steps.

    Returns:
        New param, v and buf, [...] float32 each.
    """

    scales_gradient = True

    param: Operand
    v: Operand
    buf: Operand
    grad: Operand
    lr: Operand
    step: Operand
    group: int
    alpha: float
    eps: float
    momentum: float
    weight_decay: float
    every: int

    def reference(self) -> tuple[Tensor, Tensor, Tensor]:
        """The result in plain PyTorch."""
        gradient = self.gradient()
        v = self.alpha * self.v + (1 - self.alpha) * gradient * gradient
        buf = self.momentum * self.buf + gradient / (v.sqrt() + self.eps)
        param = self.param - self.lr[self.group] * buf
        return self.due(param, self.param), self.due(v, self.v), self.due(buf, self.buf)

    def fake(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shape rule: three tensors like ``param``."""
        self.fits((self.param, self.v, self.buf), self.grad, self.lr, self.group)
        shape = tuple(self.param.shape)
        return self.param.new_empty(shape), self.param.new_empty(shape), self.param.new_empty(shape)

    def compute(self) -> tuple[te.Tensor, ...]:
        """The new mean square and velocity, then one loop nest that overwrites the parameter and both."""
        new_v = te.compute(
            self.param.shape,
            lambda *i: self.alpha * self.v[i] + (1 - self.alpha) * self.te_gradient(i) * self.te_gradient(i),
            name="rmsprop_momentum_update_v",
        )

        new_buf = te.compute(
            self.param.shape,
            lambda *i: self.momentum * self.buf[i] + self.te_gradient(i) / (tirx.sqrt(new_v[i]) + self.eps),
            name="rmsprop_momentum_update_buf",
        )

        def updated(*i: Any) -> Any:
            param = self.param[i] - self.lr[self.group] * new_buf[i]
            pairs = ((param, self.param[i]), (new_v[i], self.v[i]), (new_buf[i], self.buf[i]))
            return tuple(self.te_due(new, old) for new, old in pairs)

        return tuple(te.compute(self.param.shape, updated, name="rmsprop_momentum_update"))

    def cost(self) -> Cost:
        """The cost: four tensors are read and three are written."""
        return Cost(flops=12 * self.param.numel(), bytes_moved=7 * tensor_bytes(self.param))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: with and without decay, two groups, odd shapes, a step without an update."""
        g = torch.Generator().manual_seed(0)
        rates = torch.tensor([1e-3, 1e-1])
        cases = (((16, 32, 3, 3), 1, 0, 0.0, 1), ((7, 5), 3, 1, 1e-2, 1), ((33,), 4, 1, 0.1, 2), ((5,), 3, 0, 0.1, 2))
        for shape, step, group, decay, every in cases:
            param, grad, buf = (torch.randn(shape, generator=g) for _ in range(3))
            v = torch.rand(shape, generator=g)
            yield param, v, buf, grad, rates, torch.tensor(step), group, 0.99, 1e-8, 0.9, decay, every

    def onnx_body(self, op: Body) -> tuple[str, str, str]:
        """The ONNX body: element-wise."""
        alpha, rate = op.double("alpha"), op("Gather", self.lr, op.integer("group"), axis=0)
        new = op.cast(op("Sub", op.constant(1.0, "float64"), alpha), "float32")
        gradient = self.onnx_gradient(op)
        square = op("Mul", op("Mul", gradient, new), gradient)
        v = op("Add", op("Mul", self.v, op.cast(alpha, "float32")), square)
        scaled = op("Div", gradient, op("Add", op("Sqrt", v), op.float("eps")))
        buf = op("Add", op("Mul", self.buf, op.float("momentum")), scaled)
        param = op("Sub", self.param, op("Mul", buf, rate))
        pairs = ((param, self.param), (v, self.v), (buf, self.buf))
        param, v, buf = (self.onnx_due(op, new, old) for new, old in pairs)
        return param, v, buf
