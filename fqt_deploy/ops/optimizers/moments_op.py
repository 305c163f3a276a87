"""The base of updates by two moments, as Adam keeps them: what Adam and its relatives share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_body import Attributes, Body
from fqt_deploy.ops.op import Operand
from fqt_deploy.ops.optimizers.update_op import UpdateOp


class MomentsOp(UpdateOp):
    """An update by ``m``, the running mean of the gradient, and ``v``, that of its square.

    A subclass declares the fields that are named here, in its own order, and others.
    Weight decay is added to the gradient or, where it is decoupled, taken from the parameter.
    """

    scales_gradient = True

    param: Operand
    m: Operand
    v: Operand
    grad: Operand
    lr: Operand
    group: int
    beta1: float
    beta2: float
    weight_decay: float
    decoupled: bool

    def old_moments(self) -> tuple[Tensor, Tensor]:
        """Reference: the moments before the update."""
        return self.m, self.v

    def moved(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reference: the parameter and the gradient with their decay, and the new moments."""
        param, grad = self.param, self.grad
        if self.weight_decay and not self.decoupled:
            grad = grad + self.weight_decay * param
        if self.weight_decay and self.decoupled:
            param = param * (1 - self.lr[self.group] * self.weight_decay)
        old_m, old_v = self.old_moments()
        m = old_m + (1 - self.beta1) * (grad - old_m)
        v = self.beta2 * old_v + (1 - self.beta2) * grad * grad
        return param, grad, m, v

    def all_due(self, param: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reference: the new values where an update is due, else the old ones."""
        return self.due(param, self.param), self.due(m, self.m), self.due(v, self.v)

    def fake(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shape rule: three tensors like ``param``."""
        self.fits((self.param, self.m, self.v), self.grad, self.lr, self.group)
        shape = tuple(self.param.shape)
        return self.param.new_empty(shape), self.param.new_empty(shape), self.param.new_empty(shape)

    def te_gradient(self, i: tuple[Any, ...]) -> Any:
        """Loop nest: element ``i`` of the gradient, with its decay."""
        if self.weight_decay and not self.decoupled:
            return self.grad[i] + self.weight_decay * self.param[i]
        return self.grad[i]

    def te_old_moments(self, i: tuple[Any, ...]) -> tuple[Any, Any]:
        """Loop nest: element ``i`` of the moments before the update."""
        return self.m[i], self.v[i]

    def te_new_moments(self, i: tuple[Any, ...]) -> tuple[Any, Any]:
        """Loop nest: element ``i`` of the moments after the update."""
        m, v = self.te_old_moments(i)
        return (
            m + (1 - self.beta1) * (self.te_gradient(i) - m),
            self.beta2 * v + (1 - self.beta2) * self.te_gradient(i) * self.te_gradient(i),
        )

    def te_kept(self, i: tuple[Any, ...]) -> Any:
        """Loop nest: element ``i`` of the parameter, with its decay."""
        if self.weight_decay and self.decoupled:
            return self.param[i] * (1.0 - self.lr[self.group] * self.weight_decay)
        return self.param[i]

    def te_moved(self, change: Callable[[Any, Any, tuple[Any, ...]], Any]) -> tuple[te.Tensor, ...]:
        """Loop nest: new moments, then one that overwrites parameter and moments element by element.

        Args:
            change: what is taken from element ``i`` of the parameter, of its new moments and ``i``.
        """
        new_m = te.compute(self.param.shape, lambda *i: self.te_new_moments(i)[0], name=f"{self.name}_m")
        new_v = te.compute(self.param.shape, lambda *i: self.te_new_moments(i)[1], name=f"{self.name}_v")

        def updated(*i: Any) -> Any:
            param = self.te_kept(i) - change(new_m[i], new_v[i], i)
            pairs = ((param, self.param[i]), (new_m[i], self.m[i]), (new_v[i], self.v[i]))
            return tuple(self.te_due(new, old) for new, old in pairs)

        return tuple(te.compute(self.param.shape, updated, name=self.name))

    def onnx_old_moments(self, op: Body) -> tuple[str, str]:
        """ONNX: the moments before the update."""
        return self.m, self.v

    def onnx_moved(self, op: Body) -> tuple[str, str, str, str]:
        """ONNX: the parameter and the gradient with their decay, and the new moments."""
        beta1, beta2, one = op.double("beta1"), op.double("beta2"), op.constant(1.0, "float64")
        new1, new2 = (op.cast(op("Sub", one, beta), "float32") for beta in (beta1, beta2))
        grad = op("Add", self.grad, op("Mul", self.param, op.float("gradient_decay")))
        old_m, old_v = self.onnx_old_moments(op)
        m = op("Add", old_m, op("Mul", op("Sub", grad, old_m), new1))
        v = op("Add", op("Mul", old_v, op.cast(beta2, "float32")), op("Mul", op("Mul", grad, new2), grad))
        rate = op("Gather", self.lr, op.integer("group"), axis=0)
        decay = op("Mul", rate, op.float("parameter_decay"))
        return op("Mul", self.param, op("Sub", op.constant(1.0, "float32"), decay)), grad, m, v

    def onnx_all_due(self, op: Body, param: str, m: str, v: str) -> tuple[str, str, str]:
        """ONNX: the new values where an update is due, else the old ones."""
        return (
            self.onnx_due(op, param, self.param),
            self.onnx_due(op, m, self.m),
            self.onnx_due(op, v, self.v),
        )

    def onnx_attributes(self) -> Attributes:
        """The attributes, but weight decay as that of the gradient and that of the parameter, one of which is 0."""
        own = {name: getattr(self, name) for name in self.attributes() if name not in ("weight_decay", "decoupled")}
        decay = float(self.weight_decay)
        return {
            **own,
            "gradient_decay": 0.0 if self.decoupled else decay,
            "parameter_decay": decay if self.decoupled else 0.0,
        }


def sample_moments(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A parameter, its moments and its gradient, for the samples of an op."""
    param, m, grad = (torch.randn(shape, generator=generator) for _ in range(3))
    return param, m, torch.rand(shape, generator=generator), grad
