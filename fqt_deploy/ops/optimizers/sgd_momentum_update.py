"""``fqt::sgd_momentum_update``: one step of gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import (
    NEVER_ZERO,
    Layout,
    no_samples,
)


@define(kind=Kind.UPDATE, batch=no_samples, zero=NEVER_ZERO, layout=Layout.OPAQUE)
class SgdMomentumUpdate(FqtOp):
    """The update that ``torch.optim.SGD`` with momentum and no dampening makes of a parameter.

    Attributes:
        param: [...] float32.
        buf: [...] float32, momentum; not read at the first step.
        grad: [...] float32.
        lr: [G] float32, learning rates of the parameter groups.
        step: [] int64, number of this step, from 1.
        group: which learning rate.
        momentum: decay of ``buf``.
        nesterov: look ahead.
        weight_decay: zero for none.

    Returns:
        New param and buf, [...] float32 each.
    """

    param: Operand
    buf: Operand
    grad: Operand
    lr: Operand
    step: Operand
    group: int
    momentum: float
    nesterov: bool
    weight_decay: float

    def reference(self) -> tuple[Tensor, Tensor]:
        """The result in plain PyTorch."""
        buf = self.buf
        gradient = self.grad + self.weight_decay * self.param
        buf = torch.where(self.step == 1, gradient, self.momentum * buf + gradient)
        return self.param - self.lr[self.group] * (gradient + self.momentum * buf if self.nesterov else buf), buf

    def fake(self) -> tuple[Tensor, Tensor]:
        """Shape rule: two tensors like ``param``."""
        if (
            not self.param.shape == self.buf.shape == self.grad.shape
            or self.step.dim() != 0
            or not 0 <= self.group < self.lr.shape[0]
        ):
            raise ValueError(
                f"parameter {tuple(self.param.shape)}, its state and gradient {tuple(self.grad.shape)} do not match"
            )
        return self.param.new_empty(tuple(self.param.shape)), self.param.new_empty(tuple(self.param.shape))

    def compute(self) -> tuple[te.Tensor, ...]:
        """The new buffer, then one loop nest that overwrites parameter and buffer element by element."""

        def gradient(i: tuple[Any, ...]) -> Any:
            return self.grad[i] + self.weight_decay * self.param[i] if self.weight_decay else self.grad[i]

        new_buf = te.compute(
            self.param.shape,
            lambda *i: tirx.Select(self.step().equal(1), gradient(i), self.momentum * self.buf[i] + gradient(i)),
            name="sgd_momentum_update_buf",
        )

        def updated(*i: Any) -> Any:
            direction = gradient(i) + self.momentum * new_buf[i] if self.nesterov else new_buf[i]
            return self.param[i] - self.lr[self.group] * direction, new_buf[i]

        return tuple(te.compute(self.param.shape, updated, name="sgd_momentum_update"))

    def cost(self) -> Cost:
        """The cost: three tensors are read and two are written."""
        return Cost(flops=(8 if self.nesterov else 6) * self.param.numel(), bytes_moved=5 * tensor_bytes(self.param))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: first and later steps, decay, look-ahead, two groups, odd shapes."""
        g = torch.Generator().manual_seed(0)
        rates = torch.tensor([1e-3, 1e-1])
        cases = (
            ((16, 32, 3, 3), 1, 0, False, 0.0),
            ((7, 5), 10, 1, True, 1e-2),
            ((33,), 1, 1, True, 1e-1),
            ((1,), 2, 0, False, 1e-2),
        )
        for shape, step, group, nesterov, decay in cases:
            param, buf, grad = (torch.randn(shape, generator=g) for _ in range(3))
            yield param, buf, grad, rates, torch.tensor(step), group, 0.9, nesterov, decay

    def onnx_body(self, op: Body) -> tuple[str, str]:
        """The ONNX body: element-wise; ``nesterov`` chooses between two directions."""
        momentum = op.float("momentum")
        gradient = op("Add", self.grad, op("Mul", self.param, op.float("weight_decay")))
        first = op("Equal", self.step, op.constant(1, "int64"))
        new = op("Where", first, gradient, op("Add", op("Mul", self.buf, momentum), gradient))
        ahead = op("Add", gradient, op("Mul", new, momentum))
        direction = op("Where", op.cast(op.integer("nesterov"), "bool"), ahead, new)
        return op("Sub", self.param, op("Mul", direction, op("Gather", self.lr, op.integer("group"), axis=0))), new
