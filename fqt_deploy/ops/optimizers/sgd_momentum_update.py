"""``fqt::sgd_momentum_update``: one step of gradient descent with momentum."""

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
class SgdMomentumUpdate(DecayedGradient, UpdateOp):
    """The update that ``torch.optim.SGD`` with momentum makes of a parameter.

    Attributes:
        param: [...] float32.
        buf: [...] float32, momentum; not read at the first step.
        grad: [...] float32.
        lr: [G] float32, learning rates of the parameter groups.
        step: [] int64, number of this step, from 1.
        group: which learning rate.
        momentum: decay of ``buf``.
        dampening: share of the gradient that is not added to ``buf``, but for the first update.
        nesterov: look ahead.
        weight_decay: zero for none.
        every: update at each multiple of this many steps.

    Returns:
        New param and buf, [...] float32 each.
    """

    scales_gradient = False

    param: Operand
    buf: Operand
    grad: Operand
    lr: Operand
    step: Operand
    group: int
    momentum: float
    dampening: float
    nesterov: bool
    weight_decay: float
    every: int

    def reference(self) -> tuple[Tensor, Tensor]:
        """The result in plain PyTorch."""
        gradient = self.gradient()
        later = self.momentum * self.buf + (1 - self.dampening) * gradient
        buf = torch.where(self.number() == 1, gradient, later)
        param = self.param - self.lr[self.group] * (gradient + self.momentum * buf if self.nesterov else buf)
        return self.due(param, self.param), self.due(buf, self.buf)

    def fake(self) -> tuple[Tensor, Tensor]:
        """Shape rule: two tensors like ``param``."""
        self.fits((self.param, self.buf), self.grad, self.lr, self.group)
        return self.param.new_empty(tuple(self.param.shape)), self.param.new_empty(tuple(self.param.shape))

    def compute(self) -> tuple[te.Tensor, ...]:
        """The new buffer, then one loop nest that overwrites parameter and buffer element by element."""

        def added(i: tuple[Any, ...]) -> Any:
            return self.te_gradient(i) * (1.0 - self.dampening) if self.dampening else self.te_gradient(i)

        new_buf = te.compute(
            self.param.shape,
            lambda *i: tirx.Select(
                self.te_number().equal(1), self.te_gradient(i), self.momentum * self.buf[i] + added(i)
            ),
            name="sgd_momentum_update_buf",
        )

        def updated(*i: Any) -> Any:
            direction = self.te_gradient(i) + self.momentum * new_buf[i] if self.nesterov else new_buf[i]
            param = self.param[i] - self.lr[self.group] * direction
            return self.te_due(param, self.param[i]), self.te_due(new_buf[i], self.buf[i])

        return tuple(te.compute(self.param.shape, updated, name="sgd_momentum_update"))

    def cost(self) -> Cost:
        """The cost: three tensors are read and two are written."""
        return Cost(flops=(8 if self.nesterov else 6) * self.param.numel(), bytes_moved=5 * tensor_bytes(self.param))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: first and later steps, decay, look-ahead, dampening, an update for several steps, none."""
        g = torch.Generator().manual_seed(0)
        rates = torch.tensor([1e-3, 1e-1])
        cases = (
            ((16, 32, 3, 3), 1, 0, 0.0, False, 0.0, 1),
            ((7, 5), 10, 1, 0.0, True, 1e-2, 5),
            ((33,), 1, 1, 0.0, True, 1e-1, 1),
            ((1,), 2, 0, 0.25, False, 1e-2, 2),
            ((5, 3), 4, 0, 0.25, False, 1e-2, 2),
            ((5, 3), 5, 0, 0.0, True, 1e-2, 2),
        )
        for shape, step, group, dampening, nesterov, decay, every in cases:
            param, buf, grad = (torch.randn(shape, generator=g) for _ in range(3))
            yield param, buf, grad, rates, torch.tensor(step), group, 0.9, dampening, nesterov, decay, every

    def onnx_body(self, op: Body) -> tuple[str, str]:
        """The ONNX body: element-wise; ``nesterov`` chooses between two directions."""
        momentum = op.float("momentum")
        gradient = self.onnx_gradient(op)
        first = op("Equal", self.onnx_number(op), op.constant(1, "int64"))
        added = op("Mul", gradient, op("Sub", op.constant(1.0, "float32"), op.float("dampening")))
        new = op("Where", first, gradient, op("Add", op("Mul", self.buf, momentum), added))
        ahead = op("Add", gradient, op("Mul", new, momentum))
        direction = op("Where", op.cast(op.integer("nesterov"), "bool"), ahead, new)
        param = op("Sub", self.param, op("Mul", direction, op("Gather", self.lr, op.integer("group"), axis=0)))
        return self.onnx_due(op, param, self.param), self.onnx_due(op, new, self.buf)
