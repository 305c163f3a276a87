"""``fqt::channel_gradient_sums``: the two sums that batch normalization's backward needs, in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.layers.channel_sums import onnx_channel_sum, pair_sum
from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.ROOT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class ChannelGradientSums(FqtOp):
    """Sum of the gradient, and of gradient times centered input, over all axes but the last.

    Attributes:
        gradient: [..., C] float32.
        x: [..., C] float32.
        mean: [C] float32.

    Returns:
        sum(gradient): [C] float32. sum(gradient * (x - mean)): [C] float32.
    """

    gradient: Operand
    x: Operand
    mean: Operand

    tolerance = 1e-4

    def reference(self) -> tuple[Tensor, Tensor]:
        """The result in plain PyTorch."""
        rows = self.gradient.flatten(0, -2)
        return rows.sum(0), (rows * (self.x.flatten(0, -2) - self.mean)).sum(0)

    def fake(self) -> tuple[Tensor, Tensor]:
        """Shape rule: [..., C], [..., C], [C] -> [C], [C]."""
        if self.gradient.shape != self.x.shape:
            raise ValueError(f"gradient {tuple(self.gradient.shape)} and input {tuple(self.x.shape)} differ in shape")
        return torch.empty_like(self.mean), torch.empty_like(self.mean)

    def compute(self) -> tuple[te.Tensor, te.Tensor]:
        """One pass over both operands; partial sums by index of axis 0."""
        *leading, channels = (int(d) for d in self.gradient.shape)
        return pair_sum(
            leading,
            channels,
            lambda *i: (self.gradient[i], self.gradient[i] * (self.x[i] - self.mean[i[-1]])),
            name="channel_gradient_sums",
        )

    def cost(self) -> Cost:
        """Four operations an element, each operand read once."""
        return Cost(flops=4 * self.x.numel(), bytes_moved=tensor_bytes(self.gradient, self.x, self.mean))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Yields calls on spatial and on flat tensors."""
        g = torch.Generator().manual_seed(0)
        for shape in ((3, 4, 5, 32), (17, 10)):
            x = torch.randn(shape, generator=g)
            yield torch.randn(shape, generator=g), x, x.flatten(0, -2).mean(0)

    def onnx_body(self, op: Body) -> tuple[str, str]:
        """Writes the nodes of two sums, and returns the names of their results."""
        return onnx_channel_sum(op, self.gradient), onnx_channel_sum(
            op, op("Mul", self.gradient, op("Sub", self.x, self.mean))
        )
