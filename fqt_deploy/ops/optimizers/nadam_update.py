"""``fqt::nadam_update``: one step of NAdam."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.optimizers.moments_op import MomentsOp, sample_moments
from fqt_deploy.ops.optimizers.nadam_product_update import WARM, onnx_momentum, te_momentum
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.UPDATE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class NadamUpdate(MomentsOp):
    """The update that ``torch.optim.NAdam`` makes of a parameter.

    Attributes:
        param: [...] float32.
        m: [...] float32, running mean of the gradient.
        v: [...] float32, running mean of its square.
        grad: [...] float32.
        rest: [] float32, what ``nadam_product_update`` gives in this step.
        lr: [G] float32, learning rates of the parameter groups.
        step: [] int64, number of this step, from 1.
        group: which learning rate.
        beta1: decay of ``m``.
        beta2: decay of ``v``.
        eps: added to the denominator.
        momentum_decay: how fast the momenta approach ``beta1``.
        weight_decay: zero for none.
        decoupled: decay the parameter, not the gradient.
        every: update at each multiple of this many steps.

    Returns:
        New param, m and v, [...] float32 each.
    """

    param: Operand
    m: Operand
    v: Operand
    grad: Operand
    rest: Operand
    lr: Operand
    step: Operand
    group: int
    beta1: float
    beta2: float
    eps: float
    momentum_decay: float
    weight_decay: float
    decoupled: bool
    every: int

    def reference(self) -> tuple[Tensor, Tensor, Tensor]:
        """The result in plain PyTorch."""
        kept, grad, m, v = self.moved()
        rate, rest, t = self.lr[self.group].double(), self.rest.double(), self.number().double()
        mu, following = (self.beta1 * (1 - 0.5 * WARM ** (i * self.momentum_decay)) for i in (t, t + 1))
        of_grad = (rate * (1 - mu) / rest).float()
        of_m = (rate * following / (rest * following + (1 - following))).float()
        denominator = v.sqrt() * (1 - self.beta2**t).rsqrt().float() + self.eps
        return self.all_due(kept - (of_grad * grad + of_m * m) / denominator, m, v)

    def fake(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shape rule: three tensors like ``param``."""
        if self.rest.dim() != 0:
            raise ValueError(f"the rest has the shape {tuple(self.rest.shape)}, not []")
        return super().fake()

    def compute(self) -> tuple[te.Tensor, ...]:
        """The factors of gradient, mean and root, then as Adam."""

        def correction(i: Any) -> Any:
            number, one = self.te_number(), tirx.const(1.0, "float64")
            rate, rest = self.lr[self.group].astype("float64"), self.rest().astype("float64")
            mu, following = (te_momentum(self.beta1, self.momentum_decay, t) for t in (number, number + 1))
            of_grad = rate * (one - mu) / rest
            of_m = rate * following / (rest * following + (one - following))
            second = one - tirx.power(tirx.const(self.beta2, "float64"), number.astype("float64"))
            others = tirx.if_then_else(i < 2, of_m, one / tirx.sqrt(second))
            return tirx.if_then_else(i < 1, of_grad, others).astype("float32")

        factors = te.compute((3,), correction, name="nadam_update_correction")

        def change(m: Any, v: Any, i: tuple[Any, ...]) -> Any:
            mean = factors[0] * self.te_gradient(i) + factors[1] * m
            return mean / (tirx.sqrt(v) * factors[2] + self.eps)

        return self.te_moved(change)

    def cost(self) -> Cost:
        """The cost: fifteen operations an element; reads four tensors and writes three."""
        return Cost(flops=15 * self.param.numel(), bytes_moved=7 * tensor_bytes(self.param))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: no and both decays, two groups, odd shapes, the first update, a step without one."""
        g = torch.Generator().manual_seed(0)
        rates = torch.tensor([1e-3, 1e-2])
        cases = (
            ((16, 32, 3, 3), 1, 0, 0.55, 4e-3, 0.0, False, 1),
            ((7, 5), 10, 1, 0.8, 4e-3, 1e-2, False, 5),
            ((33,), 1000, 1, 1.0, 0.1, 1e-1, True, 1),
            ((1,), 2, 0, 0.8, 0.0, 0.0, True, 1),
            ((3, 5), 3, 0, 0.55, 4e-3, 1e-2, True, 2),
        )
        for shape, step, group, rest, momentum_decay, decay, decoupled, every in cases:
            hyperparameters = (0.9, 0.999, 1e-8, momentum_decay, decay, decoupled, every)
            operands = (*sample_moments(shape, g), torch.tensor(rest), rates, torch.tensor(step))
            yield *operands, group, *hyperparameters

    def onnx_body(self, op: Body) -> tuple[str, str, str]:
        """The ONNX body: scalars in double precision, as in the reference; the rest element-wise."""
        kept, grad, m, v = self.onnx_moved(op)
        one, number = op.constant(1.0, "float64"), self.onnx_number(op)
        rate = op.cast(op("Gather", self.lr, op.integer("group"), axis=0), "float64")
        rest, later = op.cast(self.rest, "float64"), op("Add", number, op.constant(1, "int64"))
        mu, following = (onnx_momentum(op, t) for t in (number, later))
        of_grad = op("Div", op("Mul", rate, op("Sub", one, mu)), rest)
        corrected = op("Add", op("Mul", rest, following), op("Sub", one, following))
        of_m = op("Div", op("Mul", rate, following), corrected)
        second = op("Sub", one, op("Pow", op.double("beta2"), op.cast(number, "float64")))
        root = op.cast(op("Reciprocal", op("Sqrt", second)), "float32")
        mean = op("Add", op("Mul", grad, op.cast(of_grad, "float32")), op("Mul", m, op.cast(of_m, "float32")))
        denominator = op("Add", op("Mul", op("Sqrt", v), root), op.float("eps"))
        return self.onnx_all_due(op, op("Sub", kept, op("Div", mean, denominator)), m, v)
