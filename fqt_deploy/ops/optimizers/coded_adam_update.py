"""``fqt::coded_adam_update``: one step of Adam, or of AdamW, whose moments are kept in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.optimizers.adam_update import AdamChange
from fqt_deploy.ops.optimizers.coded_moments_op import CodedMomentsOp, sample_coded_moments
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.UPDATE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class CodedAdamUpdate(CodedMomentsOp, AdamChange):
    """The update of ``adam_update`` with moments in 8 bits, a scale for each block of a row's elements.

    Attributes:
        param: [..., E] float32.
        m: [..., E] uint8, codes of the running mean of the gradient.
        v: [..., E] uint8, codes of the running mean of its square.
        m_scale: [..., B] float32, scales of ``m`` in B blocks of E / B elements, a multiple of 16.
        v_scale: [..., B] float32, scales of ``v``.
        grad: [..., E] float32.
        key: [2] int32 random stream of the rounding; the counter is the element's position.
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
        New param, m, v, m_scale and v_scale.
    """

    param: Operand
    m: Operand
    v: Operand
    m_scale: Operand
    v_scale: Operand
    grad: Operand
    key: Operand
    lr: Operand
    step: Operand
    group: int
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool
    every: int

    def reference(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The result in plain PyTorch."""
        kept, _, m, v = self.moved()
        return self.all_kept(kept - self.change(m, v), m, v)

    def compute(self) -> tuple[te.Tensor, ...]:
        """The largest moments of each block, then parameter and codes element by element, then the scales."""
        return self.te_coded(self.te_change())

    def cost(self) -> Cost:
        """The cost: about sixty operations an element; all but the gradient is read and written."""
        written = tensor_bytes(self.param, self.m, self.v, self.m_scale, self.v_scale)
        return Cost(flops=60 * self.param.numel(), bytes_moved=2 * written + tensor_bytes(self.grad))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: blocks of all lengths, one axis, no and both decays, an update for several steps, none."""
        g = torch.Generator().manual_seed(0)
        rates, key = torch.tensor([1e-3, 1e-2]), torch.tensor([123456789, -987654321], dtype=torch.int32)
        cases = (
            ((16, 768), 3, 1, 0, 0.0, False, 1),
            ((7, 48), 1, 10, 1, 1e-2, False, 5),
            ((512,), 2, 1000, 1, 1e-1, True, 1),
            ((64, 1152), 6, 2, 0, 0.0, True, 1),
            ((3, 16), 1, 3, 0, 1e-2, True, 2),
        )
        for shape, blocks, step, group, decay, decoupled, every in cases:
            tensors = sample_coded_moments(shape, blocks, g)
            hyperparameters = (0.9, 0.999, 1e-8, decay, decoupled, every)
            yield *tensors, key, rates, torch.tensor(step), group, *hyperparameters

    def onnx_body(self, op: Body) -> tuple[str, str, str, str, str]:
        """The ONNX body: moments from their codes, Adam, and codes again."""
        kept, _, m, v = self.onnx_moved(op)
        return self.onnx_all_kept(op, op("Sub", kept, self.onnx_change(op, m, v)), m, v)
