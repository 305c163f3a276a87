"""``fqt::position_statistics``: minimum, maximum and sum of squares over positions, in one read of the gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.ROOT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class PositionStatistics(FqtOp):
    """The statistics that both quantizers and both selections need, per sample and channel.

    Attributes:
        g: [N, P, C] float32.

    Returns:
        low, high, squares: [N, C] float32 each.
    """

    g: Operand

    tolerance = 1e-4

    def reference(self) -> tuple[Tensor, Tensor, Tensor]:
        """The result in plain PyTorch."""
        return self.g.amin(1), self.g.amax(1), (self.g * self.g).sum(1)

    def fake(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shape rule: [N, P, C] -> three times [N, C]."""
        if self.g.ndim != 3:
            raise ValueError(f"expected [N, P, C], got {tuple(self.g.shape)}")
        n, _, c = self.g.shape
        return self.g.new_empty(n, c), self.g.new_empty(n, c), self.g.new_empty(n, c)

    def compute(self) -> tuple[te.Tensor, ...]:
        """The loop nest: one tuple reduction."""
        n, positions, channels = (int(d) for d in self.g.shape)
        combine = te.comm_reducer(
            lambda a, b: (tirx.min(a[0], b[0]), tirx.max(a[1], b[1]), a[2] + b[2]),
            lambda *dtypes: (tirx.max_value(dtypes[0]), tirx.min_value(dtypes[1]), tirx.const(0.0, dtypes[2])),
        )
        p = te.reduce_axis((0, positions), "p")
        result = te.compute(
            (n, channels),
            lambda i, c: combine((self.g[i, p, c], self.g[i, p, c], self.g[i, p, c] * self.g[i, p, c]), axis=p),
            name="position_statistics",
        )
        return tuple(result)

    def cost(self) -> Cost:
        """The cost: four operations an element."""
        return Cost(flops=4 * self.g.numel(), bytes_moved=tensor_bytes(self.g))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: whole and partial vectors, one position, long rows."""
        g = torch.Generator().manual_seed(0)
        for shape in ((3, 16, 64), (2, 5, 7), (4, 1, 33), (2, 16, 1024)):
            yield (torch.randn(shape, generator=g),)

    def onnx_body(self, op: Body) -> tuple[str, str, str]:
        """The ONNX body: three reductions."""
        axis = op.constant([1], "int64")
        low, high = op("ReduceMin", self.g, axis, keepdims=0), op("ReduceMax", self.g, axis, keepdims=0)
        return low, high, op.sum(op("Mul", self.g, self.g), 1)
