"""``fqt::radam_update``: one step of RAdam."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.optimizers.moments_op import MomentsOp, sample_moments
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples

_LONG = 5.0
"""The variance is divided by where its mean is over more than this many gradients; before, it says too little."""


@define(kind=Kind.UPDATE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class RadamUpdate(MomentsOp):
    """The update that ``torch.optim.RAdam`` makes of a parameter.

    The mean of the gradient's square is over about ``length = limit - 2 t beta2^t / (1 - beta2^t)`` gradients at the
    ``t``-th update, with ``limit = 2 / (1 - beta2) - 1``.

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
        kept, _, m, v = self.moved()
        t, limit = self.number().double(), 2 / (1 - self.beta2) - 1
        second = 1 - self.beta2**t
        length = limit - 2 * t * self.beta2**t / second
        rectified = (length - 4) * (length - 2) * limit * second / ((limit - 4) * (limit - 2) * length)
        factor = torch.where(length > _LONG, rectified.sqrt(), 1.0)
        step_size = (self.lr[self.group].double() / (1 - self.beta1**t) * factor).float()
        denominator = torch.where(length > _LONG, v.sqrt() + self.eps, 1.0)
        return self.all_due(kept - step_size * m / denominator, m, v)

    def compute(self) -> tuple[te.Tensor, ...]:
        """The size of the step and whether to divide, then as Adam."""
        limit = 2 / (1 - self.beta2) - 1
        scale = limit / ((limit - 4) * (limit - 2)) if limit > _LONG else 0.0  # no length is above the limit

        def double(value: float) -> Any:
            return tirx.const(value, "float64")

        def correction(i: Any) -> Any:
            t, power = self.te_number().astype("float64"), tirx.power
            first, second = (double(1.0) - power(double(beta), t) for beta in (self.beta1, self.beta2))
            length = double(limit) - double(2.0) * t * power(double(self.beta2), t) / second
            rectified = (length - double(4.0)) * (length - double(2.0)) / length * double(scale) * second
            size = tirx.if_then_else(length > double(_LONG), tirx.sqrt(rectified), double(1.0))
            divides = tirx.if_then_else(length > double(_LONG), double(1.0), double(0.0))
            rate = self.lr[self.group].astype("float64") / first
            return tirx.if_then_else(i < 1, rate * size, divides).astype("float32")

        factors = te.compute((2,), correction, name="radam_update_correction")

        def change(m: Any, v: Any, i: tuple[Any, ...]) -> Any:
            return factors[0] * m / tirx.Select(factors[1] > 0.0, tirx.sqrt(v) + self.eps, tirx.const(1.0, "float32"))

        return self.te_moved(change)

    def cost(self) -> Cost:
        """The cost: a dozen operations an element; reads four tensors and writes three."""
        return Cost(flops=12 * self.param.numel(), bytes_moved=7 * tensor_bytes(self.param))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: short, long and always short means, both decays, two groups, odd shapes, a step without one."""
        g = torch.Generator().manual_seed(0)
        rates = torch.tensor([1e-3, 1e-2])
        cases = (
            ((16, 32, 3, 3), 1, 0, 0.999, 0.0, False, 1),
            ((16, 32), 6, 1, 0.999, 0.0, True, 1),
            ((7, 5), 50, 1, 0.99, 1e-2, False, 5),
            ((33,), 1000, 1, 0.999, 1e-1, True, 1),
            ((1,), 20, 0, 0.6, 0.0, True, 1),
            ((3, 5), 3, 0, 0.999, 1e-2, True, 2),
        )
        for shape, step, group, beta2, decay, decoupled, every in cases:
            hyperparameters = (0.9, beta2, 1e-8, decay, decoupled, every)
            yield *sample_moments(shape, g), rates, torch.tensor(step), group, *hyperparameters

    def onnx_body(self, op: Body) -> tuple[str, str, str]:
        """The ONNX body: scalars in double precision, as in the reference; the rest element-wise."""
        kept, _, m, v = self.onnx_moved(op)
        t, rate = op.cast(self.onnx_number(op), "float64"), op("Gather", self.lr, op.integer("group"), axis=0)
        one, two, four = (op.constant(value, "float64") for value in (1.0, 2.0, 4.0))
        power1, power2 = (op("Pow", op.double(beta), t) for beta in ("beta1", "beta2"))
        first, second = op("Sub", one, power1), op("Sub", one, power2)
        limit = op("Sub", op("Div", two, op("Sub", one, op.double("beta2"))), one)
        length = op("Sub", limit, op("Div", op("Mul", op("Mul", two, t), power2), second))
        above, below = (op("Mul", op("Sub", x, four), op("Sub", x, two)) for x in (length, limit))
        ratio = op("Div", op("Mul", op("Mul", above, limit), second), op("Mul", below, length))
        is_long = op("Greater", length, op.constant(_LONG, "float64"))
        factor = op("Where", is_long, op("Sqrt", ratio), one)
        step_size = op.cast(op("Mul", op("Div", op.cast(rate, "float64"), first), factor), "float32")
        root = op("Add", op("Sqrt", v), op.float("eps"))
        denominator = op("Where", is_long, root, op.constant(1.0, "float32"))
        return self.onnx_all_due(op, op("Sub", kept, op("Div", op("Mul", m, step_size), denominator)), m, v)
