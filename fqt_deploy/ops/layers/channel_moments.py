"""``fqt::channel_moments``: mean and biased variance of every channel, in one pass."""

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


@define(kind=Kind.ROOT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.KEPT, layout=Layout.OPAQUE)
class ChannelMoments(FqtOp):
    """Mean and biased variance over all axes but the last.

    Attributes:
        x: [..., C] float32.

    Returns:
        mean: [C] float32. variance: [C] float32, divided by the number of elements.
    """

    x: Operand

    tolerance = 1e-3

    def reference(self) -> tuple[Tensor, Tensor]:
        """The result in plain PyTorch."""
        rows = self.x.flatten(0, -2)
        return rows.mean(0), rows.var(0, correction=0)

    def fake(self) -> tuple[Tensor, Tensor]:
        """Shape rule: [..., C] -> [C], [C]."""
        if self.x.ndim < 2:
            raise ValueError(f"expected [..., C], got shape {tuple(self.x.shape)}")
        return self.x.new_empty(self.x.shape[-1]), self.x.new_empty(self.x.shape[-1])

    def compute(self) -> tuple[te.Tensor, te.Tensor]:
        """Sums of ``x - shift`` and its square: no cancellation when the mean is large beside the deviation.

        ``shift`` is the row in the middle. The first one is a corner, where a padded convolution gives other numbers.
        """
        *leading, channels = (int(d) for d in self.x.shape)
        count = 1
        for extent in leading:
            count *= extent
        middle = [extent // 2 for extent in leading]
        shift = te.compute((channels,), lambda c: self.x[(*middle, c)], name="channel_moments_shift")
        first, second = pair_sum(
            leading,
            channels,
            lambda *i: (self.x[i] - shift[i[-1]], (self.x[i] - shift[i[-1]]) * (self.x[i] - shift[i[-1]])),
            name="channel_moments",
        )
        mean = te.compute((channels,), lambda c: shift[c] + first[c] / float(count), name="channel_moments_mean")
        variance = te.compute(
            (channels,),
            lambda c: te.max(second[c] / float(count) - first[c] / float(count) * (first[c] / float(count)), 0.0),
            name="channel_moments_variance",
        )
        return mean, variance

    def cost(self) -> Cost:
        """Four operations an element, one read."""
        return Cost(flops=4 * self.x.numel(), bytes_moved=tensor_bytes(self.x))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Spatial, flat, a single row, a large mean, few levels of many values."""
        g = torch.Generator().manual_seed(0)
        yield (torch.randn(4, 5, 6, 32, generator=g),)
        yield (torch.randn(37, 10, generator=g),)
        yield (torch.randn(1, 7, generator=g),)
        yield (torch.randn(8, 3, 3, 16, generator=g) + 1000.0,)
        yield (torch.randint(0, 2, (1, 320, 320, 8), generator=g) * 0.7,)

    def onnx_body(self, op: Body) -> tuple[str, str]:
        """Mean, then the mean of squared distances from it."""
        count = op.cast(op("ReduceProd", op("Shape", self.x, end=-1), op.constant([0], "int64"), keepdims=0), "float32")
        mean = op("Div", onnx_channel_sum(op, self.x), count)
        distance = op("Sub", self.x, mean)
        return mean, op("Div", onnx_channel_sum(op, op("Mul", distance, distance)), count)
