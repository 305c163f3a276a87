"""``fqt::weight_scale``: magnitude of a binarized weight, one scale an output channel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.ROOT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class WeightScale(FqtOp):
    """Mean absolute value of each output channel.

    Attributes:
        w: [O, I, KH, KW] float32.

    Returns:
        [O] float32.
    """

    w: Operand

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        return self.w.abs().mean([1, 2, 3])

    def fake(self) -> Tensor:
        """Shape rule: [O, I, KH, KW] -> [O]."""
        if self.w.dim() != 4:
            raise ValueError(f"a weight {tuple(self.w.shape)} has not four axes")
        return self.w.new_empty((self.w.shape[0],))

    def compute(self) -> te.Tensor:
        """The loop nest: a sum, then a division."""
        out_channels, *rest = (int(d) for d in self.w.shape)
        axes = [te.reduce_axis((0, extent), axis) for extent, axis in zip(rest, ("i", "kh", "kw"), strict=True)]
        total = te.compute(
            (out_channels,), lambda o: te.sum(tirx.abs(self.w[(o, *axes)]), axis=axes), name="weight_scale_sum"
        )
        count = tirx.const(float(math.prod(rest)), "float32")
        return te.compute(total.shape, lambda o: total[o] / count, name="weight_scale")

    def cost(self) -> Cost:
        """The cost: one addition an element."""
        return Cost(flops=self.w.numel(), bytes_moved=tensor_bytes(self.w, self.fake()))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: convolutions, a linear layer, zeros."""
        g = torch.Generator().manual_seed(0)
        yield (torch.randn(16, 32, 3, 3, generator=g),)
        yield (torch.randn(7, 5, 3, 1, generator=g),)
        yield (torch.randn(10, 64, 1, 1, generator=g),)
        yield (torch.zeros(3, 2, 1, 1),)

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: a mean of magnitudes."""
        return op("ReduceMean", op("Abs", self.w), op.constant([1, 2, 3], "int64"), keepdims=0)
