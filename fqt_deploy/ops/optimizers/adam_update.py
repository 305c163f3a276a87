"""``fqt::adam_update``: one step of Adam, or of AdamW where weight decay is decoupled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.optimizers.moments_op import MomentsOp, sample_moments
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


class AdamChange(MomentsOp):
    """What Adam takes from a parameter, for updates that declare ``eps``, however they keep their moments."""

    eps: float

    def change(self, m: Tensor, v: Tensor) -> Tensor:
        """Reference: what is taken from the parameter."""
        rate, t = self.lr[self.group], self.number().double()
        step_size = (rate.double() / (1 - self.beta1**t)).float()
        root = (1 - self.beta2**t).rsqrt().float()
        return step_size * m / (v.sqrt() * root + self.eps)

    def te_change(self) -> Callable[[Any, Any, tuple[Any, ...]], Any]:
        """Loop nest: what is taken from an element of the parameter, by its new moments and the index."""

        def correction(i: Any) -> Any:
            t, one = self.te_number().astype("float64"), tirx.const(1.0, "float64")
            first = one - tirx.power(tirx.const(self.beta1, "float64"), t)
            second = one - tirx.power(tirx.const(self.beta2, "float64"), t)
            factor = tirx.if_then_else(i < 1, self.lr[self.group].astype("float64") / first, one / tirx.sqrt(second))
            return factor.astype("float32")

        factors = te.compute((2,), correction, name=f"{self.name}_correction")
        return lambda m, v, i: factors[0] * m / (tirx.sqrt(v) * factors[1] + self.eps)

    def onnx_change(self, op: Body, m: str, v: str) -> str:
        """ONNX: what is taken from the parameter; corrections in double precision, as in the reference."""
        t, rate = op.cast(self.onnx_number(op), "float64"), op("Gather", self.lr, op.integer("group"), axis=0)
        one = op.constant(1.0, "float64")
        first, second = (op("Sub", one, op("Pow", op.double(beta), t)) for beta in ("beta1", "beta2"))
        step_size = op.cast(op("Div", op.cast(rate, "float64"), first), "float32")
        root = op.cast(op("Reciprocal", op("Sqrt", second)), "float32")
        denominator = op("Add", op("Mul", op("Sqrt", v), root), op.float("eps"))
        return op("Div", op("Mul", m, step_size), denominator)


@define(kind=Kind.UPDATE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class AdamUpdate(AdamChange):
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
        return self.all_due(kept - self.change(m, v), m, v)

    def compute(self) -> tuple[te.Tensor, ...]:
        """New moments, then one loop nest that overwrites parameter and moments element by element."""
        return self.te_moved(self.te_change())

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
            hyperparameters = (0.9, 0.999, 1e-8, decay, decoupled, every)
            yield *sample_moments(shape, g), rates, torch.tensor(step), group, *hyperparameters

    def onnx_body(self, op: Body) -> tuple[str, str, str]:
        """The ONNX body: element-wise."""
        kept, _, m, v = self.onnx_moved(op)
        return self.onnx_all_due(op, op("Sub", kept, self.onnx_change(op, m, v)), m, v)
