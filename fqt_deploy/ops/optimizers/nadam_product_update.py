"""``fqt::nadam_product_update``: what NAdam keeps for its corrections, a product over all updates."""

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

WARM = 0.96
"""The base of the power of the update's number by which NAdam's momentum grows."""


@define(kind=Kind.UPDATE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class NadamProductUpdate(UpdateOp):
    """``1 - mu_1 ... mu_t`` of NAdam's momenta ``mu_t = beta1 (1 - 0.96^(t decay) / 2)``: it begins at zero.

    Attributes:
        rest: [] float32, the value after the update before.
        step: [] int64, number of this step, from 1.
        beta1: what the momenta approach.
        momentum_decay: how fast.
        every: update at each multiple of this many steps.

    Returns:
        New rest, [] float32.
    """

    scales_gradient = False

    rest: Operand
    step: Operand
    beta1: float
    momentum_decay: float
    every: int

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        mu = self.beta1 * (1 - 0.5 * WARM ** (self.number().double() * self.momentum_decay))
        return self.due((self.rest.double() * mu + (1 - mu)).float(), self.rest)

    def fake(self) -> Tensor:
        """Shape rule: a scalar."""
        if self.rest.dim() != 0 or self.step.dim() != 0 or self.every < 1:
            raise ValueError(f"the rest has the shape {tuple(self.rest.shape)}, not []")
        return self.rest.new_empty(())

    def compute(self) -> te.Tensor:
        """The loop nest: one element; overwrites the rest in place."""

        def updated(*i: Any) -> Any:
            mu = te_momentum(self.beta1, self.momentum_decay, self.te_number())
            new = self.rest[i].astype("float64") * mu + (tirx.const(1.0, "float64") - mu)
            return self.te_due(new.astype("float32"), self.rest[i])

        return te.compute((), updated, name="nadam_product_update")

    def cost(self) -> Cost:
        """The cost: one element is read and written."""
        return Cost(flops=8, bytes_moved=2 * tensor_bytes(self.rest))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: the first update and later ones, no growth, a step without an update."""
        for rest, step, decay, every in ((0.0, 1, 4e-3, 1), (0.55, 2, 4e-3, 1), (0.9, 12, 0.0, 4), (0.7, 3, 0.1, 2)):
            yield torch.tensor(rest), torch.tensor(step), 0.9, decay, every

    def onnx_body(self, op: Body) -> str:
        """The ONNX body, in double precision."""
        mu = onnx_momentum(op, self.onnx_number(op))
        kept = op("Mul", op.cast(self.rest, "float64"), mu)
        new = op("Add", kept, op("Sub", op.constant(1.0, "float64"), mu))
        return self.onnx_due(op, op.cast(new, "float32"), self.rest)


def te_momentum(beta1: float, decay: float, number: Any) -> Any:
    """Loop nest: the momentum of the update of this number; float64."""
    power = tirx.power(tirx.const(WARM, "float64"), number.astype("float64") * tirx.const(decay, "float64"))
    return tirx.const(beta1, "float64") * (tirx.const(1.0, "float64") - tirx.const(0.5, "float64") * power)


def onnx_momentum(op: Body, number: str) -> str:
    """ONNX: the momentum of the update of this number; [] float64."""
    exponent = op("Mul", op.cast(number, "float64"), op.double("momentum_decay"))
    half = op("Mul", op.constant(0.5, "float64"), op("Pow", op.constant(WARM, "float64"), exponent))
    return op("Mul", op.double("beta1"), op("Sub", op.constant(1.0, "float64"), half))
