"""``fqt::average_parameter``: the exponential moving average of a parameter over the updates."""

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
class AverageParameter(UpdateOp):
    """The average that ``torch.optim.swa_utils.AveragedModel`` keeps of a parameter with ``get_ema_multi_avg_fn``.

    Attributes:
        average: [...] float32; not read at the first update.
        param: [...] float32, as updated in this step.
        step: [] int64, number of this step, from 1.
        decay: share of the old average in the new one.
        every: average at each multiple of this many steps.

    Returns:
        ``decay average + (1 - decay) param``, after the first update ``param``; [...] float32.
    """

    scales_gradient = False

    average: Operand
    param: Operand
    step: Operand
    decay: float
    every: int

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        later = self.average + (1 - self.decay) * (self.param - self.average)
        return self.due(torch.where(self.number() == 1, self.param, later), self.average)

    def fake(self) -> Tensor:
        """Shape rule: a tensor like ``average``."""
        if self.average.shape != self.param.shape or self.step.dim() != 0 or self.every < 1:
            raise ValueError(f"average {tuple(self.average.shape)} and {tuple(self.param.shape)} do not match")
        return self.average.new_empty(tuple(self.average.shape))

    def compute(self) -> te.Tensor:
        """The loop nest: element-wise; overwrites the average in place."""

        def averaged(*i: Any) -> Any:
            old, param = self.average[i], self.param[i]
            later = old + (1 - self.decay) * (param - old)
            return self.te_due(tirx.Select(self.te_number().equal(1), param, later), old)

        return te.compute(self.average.shape, averaged, name="average_parameter")

    def cost(self) -> Cost:
        """The cost: two tensors are read and one is written."""
        return Cost(flops=3 * self.average.numel(), bytes_moved=3 * tensor_bytes(self.average))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: the first and later updates, a step without one, an average that is not to be read."""
        g = torch.Generator().manual_seed(0)
        for shape, step, every in (((16, 18), 1, 1), ((7, 5), 6, 1), ((33,), 8, 4), ((1,), 3, 2)):
            average, param = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
            if step == 1:
                average.fill_(float("nan"))
            yield average, param, torch.tensor(step), 0.99, every

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: element-wise."""
        new = op.cast(op("Sub", op.constant(1.0, "float64"), op.double("decay")), "float32")
        later = op("Add", self.average, op("Mul", op("Sub", self.param, self.average), new))
        first = op("Equal", self.onnx_number(op), op.constant(1, "int64"))
        return self.onnx_due(op, op("Where", first, self.param, later), self.average)
