"""``fqt::synchronize_moments``: mean and variance of every channel over all processes that train together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from fqt_deploy.ops.layers.channel_sums import channel_copy, onnx_copies
from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.ROOT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.KEPT, layout=Layout.OPAQUE)
class SynchronizeMoments(FqtOp):
    """The moments in memory of their own, which the runtime replaces by those of the rows of all processes.

    One process alone has nothing to exchange: the reference, the kernel and the ONNX body are those of one.

    Attributes:
        mean: [C] float32.
        variance: [C] float32, divided by the number of rows.
        count: rows of this process.

    Returns:
        mean, variance, and the variance divided by one row less, as running statistics keep it; [C] float32.
    """

    exchanged_sums: ClassVar[int | None] = 0

    mean: Operand
    variance: Operand
    count: int

    def reference(self) -> tuple[Tensor, Tensor, Tensor]:
        """The result in plain PyTorch."""
        return self.mean.clone(), self.variance.clone(), self.variance * self._factor()

    def fake(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shape rule: [C], [C] -> three times [C]."""
        if self.mean.ndim != 1 or self.mean.shape != self.variance.shape:
            raise ValueError(f"expected two times [C], got {tuple(self.mean.shape)} and {tuple(self.variance.shape)}")
        return torch.empty_like(self.mean), torch.empty_like(self.mean), torch.empty_like(self.mean)

    def compute(self) -> tuple[te.Tensor, ...]:
        """The loop nest: copies."""
        values = {"mean": self.mean, "variance": self.variance}
        copies = [channel_copy(value, f"synchronize_moments_{name}") for name, value in values.items()]
        return *copies, channel_copy(self.variance, "synchronize_moments_unbiased", factor=self._factor())

    def cost(self) -> Cost:
        """The cost: two vectors are read and three written."""
        return Cost(flops=self.mean.numel(), bytes_moved=5 * tensor_bytes(self.mean))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Many rows, one row, an odd number of channels."""
        g = torch.Generator().manual_seed(0)
        for channels, count in ((32, 100), (7, 1), (33, 2)):
            yield torch.randn(channels, generator=g), torch.rand(channels, generator=g), count

    def onnx_body(self, op: Body) -> tuple[str, ...]:
        """The ONNX body: copies, and one row less."""
        rows = op.cast(op.integer("count"), "float32")
        less = op("Max", op("Sub", rows, op.constant(1.0, "float32")), op.constant(1.0, "float32"))
        return *onnx_copies(op, self.mean, self.variance), op("Mul", self.variance, op("Div", rows, less))

    def _factor(self) -> float:
        return self.count / max(self.count - 1, 1)
