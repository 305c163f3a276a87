"""``fqt::synchronize_sums``: the sums of batch normalization's backward over all processes."""

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


@define(kind=Kind.ROOT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class SynchronizeSums(FqtOp):
    """The two sums in memory of their own, which the runtime replaces by sums over all processes.

    They are the sums for as many rows as this process has: sums times ``count`` / rows of all. One process alone has
    nothing to exchange: the reference, the kernel and the ONNX body are those of one.

    Attributes:
        total: [C] float32, sum of the gradient.
        correlation: [C] float32, sum of the gradient times the centered input.
        count: rows of this process.

    Returns:
        As ``total`` and ``correlation``.
    """

    exchanged_sums: ClassVar[int | None] = 2

    total: Operand
    correlation: Operand
    count: int

    def reference(self) -> tuple[Tensor, Tensor]:
        """The result in plain PyTorch."""
        return self.total.clone(), self.correlation.clone()

    def fake(self) -> tuple[Tensor, Tensor]:
        """Shape rule: 2 times [C]."""
        operands = (self.total, self.correlation)
        if self.total.ndim != 1 or any(operand.shape != self.total.shape for operand in operands):
            raise ValueError(f"expected 2 times [C], got {[tuple(operand.shape) for operand in operands]}")
        return torch.empty_like(self.total), torch.empty_like(self.total)

    def compute(self) -> tuple[te.Tensor, ...]:
        """The loop nest: copies."""
        values = {"total": self.total, "correlation": self.correlation}
        return tuple(channel_copy(value, f"synchronize_sums_{name}") for name, value in values.items())

    def cost(self) -> Cost:
        """The cost: 2 vectors are read and written."""
        return Cost(bytes_moved=4 * tensor_bytes(self.total))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Many channels, and an odd number of them."""
        g = torch.Generator().manual_seed(0)
        for channels in (32, 7):
            yield *(torch.randn(channels, generator=g) for _ in range(2)), 10

    def onnx_body(self, op: Body) -> tuple[str, ...]:
        """The ONNX body: copies."""
        return onnx_copies(op, self.total, self.correlation)
