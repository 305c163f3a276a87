"""``fqt::process_share``: what this process's gradients count for in the mean over all processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define
from fqt_deploy.ops.traits import NEVER_NEGATIVE, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.ROOT, batch=no_samples, zero=NEVER_ZERO, sign=NEVER_NEGATIVE, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class ProcessShare(FqtOp):
    """The number 1, which the runtime replaces by 1 / number of processes where several train together.

    Attributes:
        loss: [] float32; only says when the number is wanted.

    Returns:
        [] float32.
    """

    loss: Operand

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        return torch.ones_like(self.loss)

    def fake(self) -> Tensor:
        """Shape rule: [] -> []."""
        if self.loss.ndim:
            raise ValueError("the loss is a scalar")
        return torch.empty_like(self.loss)

    def compute(self) -> te.Tensor:
        """The loop nest of one number."""
        return te.compute((), lambda: tirx.const(1, "float32"), name="process_share")

    def cost(self) -> Cost:
        """The cost: negligible."""
        return Cost(bytes_moved=4)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """A loss."""
        yield (torch.tensor(2.5),)

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: a constant."""
        return op.constant(1.0, "float32")
