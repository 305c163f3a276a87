"""``fqt::adadelta_update``: one step of Adadelta."""

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
class AdadeltaUpdate(DecayedGradient, UpdateOp):
    """The update that ``torch.optim.Adadelta`` makes of a parameter.

    Attributes:
        param: [...] float32.
        v: [...] float32, running mean of the gradient's square.
        u: [...] float32, running mean of the square of ``delta = sqrt(u + eps) / sqrt(v + eps) gradient``.
        grad: [...] float32.
        lr: [G] float32, learning rates of the parameter groups.
        step: [] int64, number of this step, from 1.
        group: which learning rate.
        rho: decay of ``v`` and ``u``.
        eps: added to ``v`` and ``u`` under the roots.
        weight_decay: zero for none.
        every: update at each multiple of this many steps.

    Returns:
        New param, v and u, [...] float32 each.
    """

    scales_gradient = True

    param: Operand
    v: Operand
    u: Operand
    grad: Operand
    lr: Operand
    step: Operand
    group: int
    rho: float
    eps: float
    weight_decay: float
    every: int

    def reference(self) -> tuple[Tensor, Tensor, Tensor]:
        """The result in plain PyTorch."""
        gradient = self.gradient()
        v = self.rho * self.v + (1 - self.rho) * gradient * gradient
        delta = (self.u + self.eps).sqrt() / (v + self.eps).sqrt() * gradient
        u = self.rho * self.u + (1 - self.rho) * delta * delta
        param = self.param - self.lr[self.group] * delta
        return self.due(param, self.param), self.due(v, self.v), self.due(u, self.u)

    def fake(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shape rule: three tensors like ``param``."""
        self.fits((self.param, self.v, self.u), self.grad, self.lr, self.group)
        shape = tuple(self.param.shape)
        return self.param.new_empty(shape), self.param.new_empty(shape), self.param.new_empty(shape)

    def compute(self) -> tuple[te.Tensor, ...]:
        """The new mean square and the change, then one loop nest that overwrites the parameter and both means."""
        new_v = te.compute(
            self.param.shape,
            lambda *i: self.rho * self.v[i] + (1 - self.rho) * self.te_gradient(i) * self.te_gradient(i),
            name="adadelta_update_v",
        )
        delta = te.compute(
            self.param.shape,
            lambda *i: tirx.sqrt(self.u[i] + self.eps) / tirx.sqrt(new_v[i] + self.eps) * self.te_gradient(i),
            name="adadelta_update_delta",
        )

        def updated(*i: Any) -> Any:
            param = self.param[i] - self.lr[self.group] * delta[i]
            new_u = self.rho * self.u[i] + (1 - self.rho) * delta[i] * delta[i]
            pairs = ((param, self.param[i]), (new_v[i], self.v[i]), (new_u, self.u[i]))
            return tuple(self.te_due(new, old) for new, old in pairs)

        return tuple(te.compute(self.param.shape, updated, name="adadelta_update"))

    def cost(self) -> Cost:
        """The cost: four tensors are read and three are written."""
        return Cost(flops=16 * self.param.numel(), bytes_moved=7 * tensor_bytes(self.param))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: with and without decay, two groups, odd shapes, no means yet, a step without an update."""
        g = torch.Generator().manual_seed(0)
        rates = torch.tensor([1.0, 1e-1])
        cases = (((16, 32, 3, 3), 1, 0, 0.0, 1), ((7, 5), 3, 1, 1e-2, 1), ((33,), 4, 1, 0.1, 2), ((5,), 3, 0, 0.1, 2))
        for shape, step, group, decay, every in cases:
            param, grad = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
            v, u = (torch.rand(shape, generator=g) * (step > 1) for _ in range(2))
            yield param, v, u, grad, rates, torch.tensor(step), group, 0.9, 1e-6, decay, every

    def onnx_body(self, op: Body) -> tuple[str, str, str]:
        """The ONNX body: element-wise."""
        double, eps = op.double("rho"), op.float("eps")
        rho, new = op.cast(double, "float32"), op.cast(op("Sub", op.constant(1.0, "float64"), double), "float32")
        gradient = self.onnx_gradient(op)
        v = op("Add", op("Mul", self.v, rho), op("Mul", op("Mul", gradient, new), gradient))
        old_root, root = (op("Sqrt", op("Add", mean, eps)) for mean in (self.u, v))
        delta = op("Mul", op("Div", old_root, root), gradient)
        u = op("Add", op("Mul", self.u, rho), op("Mul", op("Mul", delta, new), delta))
        param = op("Sub", self.param, op("Mul", delta, op("Gather", self.lr, op.integer("group"), axis=0)))
        pairs = ((param, self.param), (v, self.v), (u, self.u))
        param, v, u = (self.onnx_due(op, new, old) for new, old in pairs)
        return param, v, u
