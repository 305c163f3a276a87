"""``fqt::scaled_update``: a parameter moved by an update that something else has scaled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.optimizers.update_op import UpdateOp
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.UPDATE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class ScaledUpdate(UpdateOp):
    """The update ``param (1 - lr decay) - factor update``, with which Adafactor ends.

    Attributes:
        param: [...] float32.
        update: [...] float32, the direction: a gradient divided by its size.
        factor: [] float32, the size of the step.
        lr: [G] float32, learning rates of the parameter groups; for the decay alone.
        step: [] int64, number of this step, from 1.
        group: which learning rate.
        weight_decay: zero for none; it decays the parameter itself.
        every: update at each multiple of this many steps.

    Returns:
        [...] float32.
    """

    scales_gradient = True

    param: Operand
    update: Operand
    factor: Operand
    lr: Operand
    step: Operand
    group: int
    weight_decay: float
    every: int

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        kept = self.param * (1 - self.lr[self.group] * self.weight_decay)
        return self.due(kept - self.factor * self.update, self.param)

    def fake(self) -> Tensor:
        """Shape rule: a tensor like ``param``."""
        self.fits((self.param,), self.update, self.lr, self.group)
        if self.factor.dim() != 0:
            raise ValueError(f"the factor has the shape {tuple(self.factor.shape)}, not []")
        return self.param.new_empty(tuple(self.param.shape))

    def compute(self) -> te.Tensor:
        """The loop nest: element-wise; may overwrite the parameter in place."""

        def updated(*i: Any) -> Any:
            rate = self.lr[self.group]
            kept = self.param[i] * (1.0 - rate * self.weight_decay) if self.weight_decay else self.param[i]
            return self.te_due(kept - self.factor() * self.update[i], self.param[i])

        return te.compute(self.param.shape, updated, name="scaled_update")

    def cost(self) -> Cost:
        """The cost: two tensors are read and one is written."""
        return Cost(flops=3 * self.param.numel(), bytes_moved=3 * tensor_bytes(self.param))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: with and without decay, two groups, odd shapes, an update for several steps, none."""
        g = torch.Generator().manual_seed(0)
        rates, factor = torch.tensor([1e-3, 1e-1]), torch.tensor(0.3)
        cases = (
            ((16, 32, 3, 3), 1, 0, 0.0, 1),
            ((7, 5), 3, 1, 1e-2, 1),
            ((1,), 4, 1, 0.0, 2),
            ((7, 5), 3, 1, 1e-2, 2),
        )
        for shape, step, group, decay, every in cases:
            param, update = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
            yield param, update, factor, rates, torch.tensor(step), group, decay, every

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: element-wise."""
        decay = op("Mul", op("Gather", self.lr, op.integer("group"), axis=0), op.float("weight_decay"))
        kept = op("Mul", self.param, op("Sub", op.constant(1.0, "float32"), decay))
        return self.onnx_due(op, op("Sub", kept, op("Mul", self.update, self.factor)), self.param)
