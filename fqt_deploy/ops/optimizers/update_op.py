"""The base of ops that update a parameter or what is kept beside it, once for several batches where asked to.

An op of this kind has ``step``, the number of this batch from 1, and ``every``: it updates at each batch whose number
is a multiple of that, and keeps what there was at the others.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import FqtOp, Operand


class UpdateOp(FqtOp):
    """An op that updates at every ``every``-th step; a subclass declares both fields in its own order.

    Attributes:
        scales_gradient: whether an update divides the gradient by its own size, and so rounding noise by its own too;
            no default.
    """

    scales_gradient: ClassVar[bool]

    step: Operand
    every: int

    def __init_subclass__(cls) -> None:
        """Refuse a definition that does not say whether it scales the gradient."""
        if not isinstance(getattr(cls, "scales_gradient", None), bool):
            raise TypeError(f"{cls.__name__} does not say whether it scales_gradient")

    def number(self) -> Tensor:
        """Reference: the number of this update, from 1; [] int64."""
        return self.step // self.every

    def due(self, new: Tensor, old: Tensor) -> Tensor:
        """Reference: ``new`` where an update is due, else ``old``."""
        return new if self.every == 1 else torch.where(self.step % self.every == 0, new, old)

    def te_number(self) -> Any:
        """Loop nest: the number of this update, from 1; int64."""
        step = self.step()
        return step if self.every == 1 else tirx.floordiv(step, tirx.const(self.every, "int64"))

    def te_due(self, new: Any, old: Any) -> Any:
        """Loop nest: ``new`` where an update is due, else ``old``."""
        if self.every == 1:
            return new
        return tirx.Select(tirx.floormod(self.step(), tirx.const(self.every, "int64")).equal(0), new, old)

    def onnx_number(self, op: Body) -> str:
        """ONNX: the number of this update, from 1; [] int64."""
        return op("Div", self.step, op.integer("every"))

    def onnx_due(self, op: Body, new: str, old: str) -> str:
        """ONNX: ``new`` where an update is due, else ``old``."""
        remainder = op("Mod", self.step, op.integer("every"))
        return op("Where", op("Equal", remainder, op.constant(0, "int64")), new, old)

    def fits(self, states: tuple[Tensor, ...], grad: Tensor, lr: Tensor, group: int) -> None:
        """Shape rule: ``ValueError`` unless the first of ``states``, the parameter, and all else are of one shape."""
        shape = states[0].shape
        alike = all(state.shape == shape for state in (*states, grad))
        if not alike or self.step.dim() != 0 or not 0 <= group < lr.shape[0] or self.every < 1:
            raise ValueError(f"parameter {tuple(shape)}, its state and gradient {tuple(grad.shape)} do not match")


class DecayedGradient:
    """The gradient with ``weight_decay`` times the parameter added, for updates that declare all three."""

    param: Operand
    grad: Operand
    weight_decay: float

    def gradient(self) -> Tensor:
        """Reference: the gradient with its decay."""
        return self.grad + self.weight_decay * self.param

    def te_gradient(self, i: tuple[Any, ...]) -> Any:
        """Loop nest: element ``i`` of the gradient with its decay."""
        return self.grad[i] + self.weight_decay * self.param[i] if self.weight_decay else self.grad[i]

    def onnx_gradient(self, op: Body) -> str:
        """ONNX: the gradient with its decay."""
        return op("Add", self.grad, op("Mul", self.param, op.float("weight_decay")))
