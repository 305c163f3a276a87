"""The base of ops that pool along one axis: what every window of forward is described by."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fqt_deploy.ops.lib.window_axis import WindowAxis
from fqt_deploy.ops.op import Cost, FqtOp, Operand, tensor_bytes


@dataclass(frozen=True, eq=False)
class WindowedOp(FqtOp):
    """An op that makes one element of each window of ``x``; its first fields are these.

    Attributes:
        x: [B, L, C] float32.
        windows: windows; this and the next four are those of ``WindowAxis``.
        step: numerator of their distance.
        parts: its denominator.
        offset: positions that the first one begins before the axis.
        span: where they end.
    """

    x: Operand
    windows: int
    step: int
    parts: int
    offset: int
    span: int

    def axis(self) -> WindowAxis:
        """Returns the windows along the axis, whose elements are ``dilation`` positions apart, if the op has that."""
        extent, dilation = int(self.x.shape[1]), getattr(self, "dilation", 1)
        return WindowAxis(extent, self.windows, self.step, self.parts, self.offset, self.span, dilation)

    def fake(self) -> Tensor:
        """Shape rule: [B, L, C] -> [B, windows, C]."""
        return self.x.new_empty((self.x.shape[0], self.windows, self.x.shape[2]))

    def cost(self) -> Cost:
        """Returns one comparison or addition for each tap of each window."""
        y = self.fake()
        return Cost(flops=self.axis().taps * y.numel(), bytes_moved=tensor_bytes(self.x, y))
