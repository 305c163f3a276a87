"""``fqt::adagrad_update``: one step of Adagrad."""

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
class AdagradUpdate(DecayedGradient, UpdateOp):
    """The update that ``torch.optim.Adagrad`` makes of a parameter.

    Attributes:
        param: [...] float32.
        total: [...] float32, sum of the squares of all gradients, without ``initial``: it begins at zero.
        grad: [...] float32.
        lr: [G] float32, learning rates of the parameter groups.
        step: [] int64, number of this step, from 1.
        group: which learning rate.
        lr_decay: the ``t``-th update divides the learning rate by ``1 + (t - 1) lr_decay``.
        initial: added to ``total`` under the root.
        eps: added to the denominator.
        weight_decay: zero for none.
        every: update at each multiple of this many steps.

    Returns:
        New param and total, [...] float32 each.
    """

    scales_gradient = True

    param: Operand
    total: Operand
    grad: Operand
    lr: Operand
    step: Operand
    group: int
    lr_decay: float
    initial: float
    eps: float
    weight_decay: float
    every: int

    def reference(self) -> tuple[Tensor, Tensor]:
        """The result in plain PyTorch."""
        gradient = self.gradient()
        total = self.total + gradient * gradient
        rate = (self.lr[self.group].double() / (1 + (self.number() - 1) * self.lr_decay)).float()
        param = self.param - rate * gradient / ((total + self.initial).sqrt() + self.eps)
        return self.due(param, self.param), self.due(total, self.total)

    def fake(self) -> tuple[Tensor, Tensor]:
        """Shape rule: two tensors like ``param``."""
        self.fits((self.param, self.total), self.grad, self.lr, self.group)
        return self.param.new_empty(tuple(self.param.shape)), self.param.new_empty(tuple(self.param.shape))

    def compute(self) -> tuple[te.Tensor, ...]:
        """The decayed rate and the new sum, then one loop nest that overwrites the parameter and the sum."""

        def decayed(_: Any) -> Any:
            earlier, one = (self.te_number() - 1).astype("float64"), tirx.const(1.0, "float64")
            rate = self.lr[self.group].astype("float64")
            return (rate / (one + earlier * tirx.const(self.lr_decay, "float64"))).astype("float32")

        rates = te.compute((1,), decayed, name="adagrad_update_rate")

        new_total = te.compute(
            self.param.shape,
            lambda *i: self.total[i] + self.te_gradient(i) * self.te_gradient(i),
            name="adagrad_update_total",
        )

        def updated(*i: Any) -> Any:
            square = new_total[i] + self.initial if self.initial else new_total[i]
            param = self.param[i] - rates[0] * self.te_gradient(i) / (tirx.sqrt(square) + self.eps)
            return self.te_due(param, self.param[i]), self.te_due(new_total[i], self.total[i])

        return tuple(te.compute(self.param.shape, updated, name="adagrad_update"))

    def cost(self) -> Cost:
        """The cost: three tensors are read and two are written."""
        return Cost(flops=9 * self.param.numel(), bytes_moved=5 * tensor_bytes(self.param))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: both decays and neither, two groups, odd shapes, no sum yet, a step without an update."""
        g = torch.Generator().manual_seed(0)
        rates = torch.tensor([1e-3, 1e-1])
        cases = (
            ((16, 32, 3, 3), 1, 0, 0.0, 0.0, 0.0, 1),
            ((7, 5), 3, 1, 0.5, 0.1, 1e-2, 1),
            ((1,), 4, 1, 0.0, 0.1, 0.1, 2),
            ((5,), 3, 0, 0.1, 0.0, 0.1, 2),
        )
        for shape, step, group, lr_decay, initial, decay, every in cases:
            param, grad = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
            total = torch.rand(shape, generator=g) * (step > 1)
            yield param, total, grad, rates, torch.tensor(step), group, lr_decay, initial, 1e-10, decay, every

    def onnx_body(self, op: Body) -> tuple[str, str]:
        """The ONNX body: the rate in double precision, as in the reference; the rest element-wise."""
        one, rate = op.constant(1.0, "float64"), op("Gather", self.lr, op.integer("group"), axis=0)
        earlier = op("Sub", op.cast(self.onnx_number(op), "float64"), one)
        divisor = op("Add", one, op("Mul", earlier, op.double("lr_decay")))
        decayed = op.cast(op("Div", op.cast(rate, "float64"), divisor), "float32")
        gradient = self.onnx_gradient(op)
        total = op("Add", self.total, op("Mul", gradient, gradient))
        denominator = op("Add", op("Sqrt", op("Add", total, op.float("initial"))), op.float("eps"))
        param = op("Sub", self.param, op("Div", op("Mul", gradient, decayed), denominator))
        return self.onnx_due(op, param, self.param), self.onnx_due(op, total, self.total)
