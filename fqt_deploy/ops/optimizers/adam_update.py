"""``fqt::adam_update``: one step of Adam, or of AdamW where weight decay is decoupled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Attributes, Body
from fqt_deploy.ops.op import Cost, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.optimizers.update_op import UpdateOp
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.UPDATE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class AdamUpdate(UpdateOp):
    """The update that ``torch.optim.Adam`` and ``torch.optim.AdamW`` make of a parameter.

    Attributes:
        param: [...] float32.
        m: [...] float32, running mean of the gradient.
        v: [...] float32, running mean of its square.
        grad: [...] float32.
        lr: [G] float32, learning rates of the parameter groups.
        step: [] int64, number of this step, from 1.
        group: which learning rate.
        beta1: decay of ``m``.
        beta2: decay of ``v``.
        eps: added to the denominator.
        weight_decay: zero for none.
        decoupled: decay the parameter, not the gradient.
        every: update at each multiple of this many steps.

    Returns:
        New param, m and v, [...] float32 each.
    """

    scales_gradient = True

    param: Operand
    m: Operand
    v: Operand
    grad: Operand
    lr: Operand
    step: Operand
    group: int
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool
    every: int

    def reference(self) -> tuple[Tensor, Tensor, Tensor]:
        """The result in plain PyTorch."""
        m, v, grad = self.m, self.v, self.grad
        rate, t = self.lr[self.group], self.number().double()
        step_size = (rate.double() / (1 - self.beta1**t)).float()
        root = (1 - self.beta2**t).rsqrt().float()
        if self.weight_decay and not self.decoupled:
            grad = grad + self.weight_decay * self.param
        m = m + (1 - self.beta1) * (grad - m)
        v = self.beta2 * v + (1 - self.beta2) * grad * grad
        kept = self.param * (1 - rate * self.weight_decay) if self.weight_decay and self.decoupled else self.param
        param = kept - step_size * m / (v.sqrt() * root + self.eps)
        return self.due(param, self.param), self.due(m, self.m), self.due(v, self.v)

    def fake(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shape rule: three tensors like ``param``."""
        self.fits((self.param, self.m, self.v), self.grad, self.lr, self.group)
        shape = tuple(self.param.shape)
        return self.param.new_empty(shape), self.param.new_empty(shape), self.param.new_empty(shape)

    def compute(self) -> tuple[te.Tensor, ...]:
        """New moments, then one loop nest that overwrites parameter and moments element by element."""

        def correction(i: Any) -> Any:
            t, one = self.te_number().astype("float64"), tirx.const(1.0, "float64")
            first = one - tirx.power(tirx.const(self.beta1, "float64"), t)
            second = one - tirx.power(tirx.const(self.beta2, "float64"), t)
            factor = tirx.if_then_else(i < 1, self.lr[self.group].astype("float64") / first, one / tirx.sqrt(second))
            return factor.astype("float32")

        factors = te.compute((2,), correction, name="adam_update_correction")

        def gradient(i: tuple[Any, ...]) -> Any:
            return (
                self.grad[i] + self.weight_decay * self.param[i]
                if self.weight_decay and not self.decoupled
                else self.grad[i]
            )

        new_m = te.compute(
            self.param.shape, lambda *i: self.m[i] + (1 - self.beta1) * (gradient(i) - self.m[i]), name="adam_update_m"
        )
        new_v = te.compute(
            self.param.shape,
            lambda *i: self.beta2 * self.v[i] + (1 - self.beta2) * gradient(i) * gradient(i),
            name="adam_update_v",
        )

        def updated(*i: Any) -> Any:
            kept = (
                self.param[i] * (1.0 - self.lr[self.group] * self.weight_decay)
                if self.weight_decay and self.decoupled
                else self.param[i]
            )
            param = kept - factors[0] * new_m[i] / (tirx.sqrt(new_v[i]) * factors[1] + self.eps)
            pairs = ((param, self.param[i]), (new_m[i], self.m[i]), (new_v[i], self.v[i]))
            return tuple(self.te_due(new, old) for new, old in pairs)

        return tuple(te.compute(self.param.shape, updated, name="adam_update"))

    def cost(self) -> Cost:
        """The cost: a dozen operations an element; reads four tensors and writes three."""
        return Cost(flops=12 * self.param.numel(), bytes_moved=7 * tensor_bytes(self.param))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: no and both decays, two groups, odd shapes, an update for several steps, none."""
        g = torch.Generator().manual_seed(0)
        rates = torch.tensor([1e-3, 1e-2])
        cases = (
            ((16, 32, 3, 3), 1, 0, 0.0, False, 1),
            ((7, 5), 10, 1, 1e-2, False, 5),
            ((33,), 1000, 1, 1e-1, True, 1),
            ((1,), 2, 0, 0.0, True, 1),
            ((3, 5), 3, 0, 1e-2, True, 2),
        )
        for shape, step, group, decay, decoupled, every in cases:
            param, m, grad = (torch.randn(shape, generator=g) for _ in range(3))
            v = torch.rand(shape, generator=g)
            yield param, m, v, grad, rates, torch.tensor(step), group, 0.9, 0.999, 1e-8, decay, decoupled, every

    def onnx_body(self, op: Body) -> tuple[str, str, str]:
        """The ONNX body: corrections in double precision, as in the reference; the rest element-wise."""
        beta1, beta2, one = op.double("beta1"), op.double("beta2"), op.constant(1.0, "float64")
        t, rate = op.cast(self.onnx_number(op), "float64"), op("Gather", self.lr, op.integer("group"), axis=0)
        first, second = (op("Sub", one, op("Pow", beta, t)) for beta in (beta1, beta2))
        step_size = op.cast(op("Div", op.cast(rate, "float64"), first), "float32")
        root = op.cast(op("Reciprocal", op("Sqrt", second)), "float32")
        new1, new2 = (op.cast(op("Sub", one, beta), "float32") for beta in (beta1, beta2))
        gradient = op("Add", self.grad, op("Mul", self.param, op.float("gradient_decay")))
        m = op("Add", self.m, op("Mul", op("Sub", gradient, self.m), new1))
        v = op("Add", op("Mul", self.v, op.cast(beta2, "float32")), op("Mul", op("Mul", gradient, new2), gradient))
        kept = op(
            "Mul", self.param, op("Sub", op.constant(1.0, "float32"), op("Mul", rate, op.float("parameter_decay")))
        )
        denominator = op("Add", op("Mul", op("Sqrt", v), root), op.float("eps"))
        param = op("Sub", kept, op("Div", op("Mul", m, step_size), denominator))
        pairs = ((param, self.param), (m, self.m), (v, self.v))
        param, m, v = (self.onnx_due(op, new, old) for new, old in pairs)
        return param, m, v

    def onnx_attributes(self) -> Attributes:
        """Weight decay of the gradient and of the parameter, one of which is 0."""
        return {
            "group": self.group,
            "beta1": self.beta1,
            "beta2": self.beta2,
            "eps": self.eps,
            "gradient_decay": 0.0 if self.decoupled else float(self.weight_decay),
            "parameter_decay": float(self.weight_decay) if self.decoupled else 0.0,
            "every": self.every,
        }
