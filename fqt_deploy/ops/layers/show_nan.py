"""``fqt::show_nan``: a loss that is NaN where a NaN was met before it was lost in a sign."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.layers.nan_number import NO_NAN
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples

_NAN = 0x7FC00000


@define(kind=Kind.ROOT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class ShowNan(FqtOp):
    """The loss, or NaN whose lowest 22 bits are a number plus 1; in ONNX, which cannot write bits, any NaN.

    Attributes:
        loss: float32 without axes.
        number: int32 without axes, as ``nan_number`` gave it.

    Returns:
        float32 without axes.
    """

    loss: Operand
    number: Operand

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        marked = (self.number + 1).bitwise_or(_NAN).view(torch.float32)
        return torch.where(self.number < NO_NAN, marked, self.loss)

    def fake(self) -> Tensor:
        """Shape rule: [], [] -> []."""
        return torch.empty_like(self.loss)

    def compute(self) -> te.Tensor:
        """The loop nest of one choice."""

        def shown() -> Any:
            number = self.number[()]
            marked = tirx.reinterpret("float32", (number + 1) | tirx.const(_NAN, "int32"))
            return tirx.Select(number < NO_NAN, marked, self.loss[()])

        return te.compute((), shown, name="show_nan")

    def cost(self) -> Cost:
        """Returns one comparison for each element."""
        return Cost(flops=1, bytes_moved=12)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """A loss, and NaN with several numbers."""
        for number in (NO_NAN, 0, 1, 4097, NO_NAN - 2):
            yield torch.tensor(2.5), torch.tensor(number, dtype=torch.int32)

    def onnx_body(self, op: Body) -> str:
        """A choice between NaN and the loss."""
        seen = op("Less", self.number, op.constant(NO_NAN, "int32"))
        return op("Where", seen, op.constant(math.nan, "float32"), self.loss)
