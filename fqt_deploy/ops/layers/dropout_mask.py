"""``fqt::dropout_mask``: which elements dropout keeps, from the counter-based generator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.counter_random import drop_threshold, element_hash, element_hash_compute
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_bits import element_hash as element_hash_onnx
from fqt_deploy.ops.lib.onnx_bits import shift_right
from fqt_deploy.ops.lib.onnx_body import Attributes, Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define
from fqt_deploy.ops.traits import NEVER_NEGATIVE, NEVER_ZERO, Layout, Nan, no_samples


@define(
    kind=Kind.ELEMENTWISE, batch=no_samples, zero=NEVER_ZERO, sign=NEVER_NEGATIVE, nan=Nan.UNKNOWN, layout=Layout.OPAQUE
)
class DropoutMask(FqtOp):
    """True with probability ``1 - probability``, independently for every element.

    Attributes:
        key: [2] int32, one random stream.
        size: shape of the mask.
        probability: of being dropped.

    Returns:
        ``size`` bool.
    """

    key: Operand
    size: list[int]
    probability: float

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        count = 1
        for extent in self.size:
            count *= extent
        index = torch.arange(count, dtype=torch.int64).view(self.size)
        return (element_hash(index, self.key) >> 8) >= drop_threshold(self.probability)

    def fake(self) -> Tensor:
        """Returns a tensor of the shape ``size``."""
        return self.key.new_empty(self.size, dtype=torch.bool)

    def compute(self) -> te.Tensor:
        """The loop nest of one hash for each element."""

        def keep(*index: Any) -> Any:
            flat: Any = tirx.const(0, "uint32")
            for i, extent in zip(index, self.size, strict=True):
                flat = flat * tirx.const(extent, "uint32") + i.astype("uint32")
            bits = element_hash_compute(flat, self.key) >> tirx.const(8, "uint32")
            return bits >= tirx.const(drop_threshold(self.probability), "uint32")

        return te.compute(self.size, keep, name="dropout_mask")

    def cost(self) -> Cost:
        """Ten integer operations an element."""
        count = 1
        for extent in self.size:
            count *= extent
        return Cost(flops=10 * count, bytes_moved=count)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Both extremes and a half."""
        key = torch.tensor([12345, -6789], dtype=torch.int32)
        for probability in (0.0, 0.5, 0.9):
            yield key, [7, 5, 3], probability

    def onnx_body(self, op: Body) -> str:
        """Writes the nodes of one hash for each element."""
        size = op.integers("size")
        count = op("ReduceProd", size, op.constant([0], "int64"))
        bits = shift_right(op, element_hash_onnx(op, op.cast(op.range(count), "uint32"), self.key), 8)
        kept = op("GreaterOrEqual", bits, op.cast(op.integer("threshold"), "uint32"))
        return op("Reshape", kept, size)

    def onnx_attributes(self) -> Attributes:
        """The threshold of 24 random bits."""
        return {"size": self.size, "threshold": drop_threshold(self.probability)}
