"""``fqt::lion_update``: one step of Lion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.optimizers.update_op import UpdateOp
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.UPDATE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class LionUpdate(UpdateOp):
    """The update of Lion: ``param (1 - lr decay) - lr sign(beta1 m + (1 - beta1) grad)``.

    Attributes:
        param: [...] float32.
        m: [...] float32, running mean of the gradient.
        grad: [...] float32.
        lr: [G] float32, learning rates of the parameter groups.
        step: [] int64, number of this step, from 1.
        group: which learning rate.
        beta1: share of ``m`` in the direction of this step.
        beta2: decay of ``m``.
        weight_decay: zero for none; it decays the parameter itself.
        every: update at each multiple of this many steps.

    Returns:
        New param and m, [...] float32 each.
    """

    scales_gradient = True

    param: Operand
    m: Operand
    grad: Operand
    lr: Operand
    step: Operand
    group: int
    beta1: float
    beta2: float
    weight_decay: float
    every: int

    def reference(self) -> tuple[Tensor, Tensor]:
        """The result in plain PyTorch."""
        rate = self.lr[self.group]
        direction = (self.m + (1 - self.beta1) * (self.grad - self.m)).sign()
        param = self.param * (1 - rate * self.weight_decay) - rate * direction
        m = self.m + (1 - self.beta2) * (self.grad - self.m)
        return self.due(param, self.param), self.due(m, self.m)

    def fake(self) -> tuple[Tensor, Tensor]:
        """Shape rule: two tensors like ``param``."""
        self.fits((self.param, self.m), self.grad, self.lr, self.group)
        return self.param.new_empty(tuple(self.param.shape)), self.param.new_empty(tuple(self.param.shape))

    def compute(self) -> tuple[te.Tensor, ...]:
        """The mean that gives the direction, then one loop nest that overwrites parameter and moment."""
        mixed = te.compute(
            self.param.shape,
            lambda *i: self.m[i] + (1 - self.beta1) * (self.grad[i] - self.m[i]),
            name="lion_update_mixed",
        )

        def updated(*i: Any) -> Any:
            rate, one, zero = self.lr[self.group], tirx.const(1.0, "float32"), tirx.const(0.0, "float32")
            negative = tirx.Select(mixed[i] < zero, -one, mixed[i])  # zero, and NaN, are their own sign
            direction = tirx.Select(mixed[i] > zero, one, negative)
            param = self.param[i] * (1.0 - rate * self.weight_decay) - rate * direction
            m = self.m[i] + (1 - self.beta2) * (self.grad[i] - self.m[i])
            return self.te_due(param, self.param[i]), self.te_due(m, self.m[i])

        return tuple(te.compute(self.param.shape, updated, name="lion_update"))

    def cost(self) -> Cost:
        """The cost: three tensors are read and two are written."""
        return Cost(flops=10 * self.param.numel(), bytes_moved=5 * tensor_bytes(self.param))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: with and without decay, zeros, two groups, odd shapes, a step without an update."""
        g = torch.Generator().manual_seed(0)
        rates = torch.tensor([1e-3, 1e-1])
        cases = (((16, 32, 3, 3), 1, 0, 0.0, 1), ((7, 5), 3, 1, 1e-2, 1), ((33,), 4, 1, 0.1, 2), ((5,), 3, 0, 0.1, 2))
        for shape, step, group, decay, every in cases:
            param, m, grad = (torch.randn(shape, generator=g) for _ in range(3))
            m.view(-1)[:2], grad.view(-1)[:2] = 0.0, 0.0
            yield param, m, grad, rates, torch.tensor(step), group, 0.9, 0.99, decay, every

    def onnx_body(self, op: Body) -> tuple[str, str]:
        """The ONNX body: element-wise."""
        one, rate = op.constant(1.0, "float32"), op("Gather", self.lr, op.integer("group"), axis=0)
        change = op("Sub", self.grad, self.m)

        def mixed(beta: str) -> str:
            new = op.cast(op("Sub", op.constant(1.0, "float64"), op.double(beta)), "float32")
            return op("Add", self.m, op("Mul", change, new))

        kept = op("Mul", self.param, op("Sub", one, op("Mul", rate, op.float("weight_decay"))))
        param = op("Sub", kept, op("Mul", rate, op("Sign", mixed("beta1"))))
        return self.onnx_due(op, param, self.param), self.onnx_due(op, mixed("beta2"), self.m)
