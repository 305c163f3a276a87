"""``fqt::uniform_numbers``: numbers from 0 to below 1, from the counter-based generator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.counter_random import element_hash, element_hash_compute
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_bits import element_hash as element_hash_onnx
from fqt_deploy.ops.lib.onnx_bits import shift_right
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define
from fqt_deploy.ops.traits import NEVER_NEGATIVE, NEVER_ZERO, Layout, Nan, no_samples

_STEP = 2.0**-24
"""Distance of two numbers: all multiples of it below 1 are float32."""


@define(
    kind=Kind.ELEMENTWISE, batch=no_samples, zero=NEVER_ZERO, sign=NEVER_NEGATIVE, nan=Nan.UNKNOWN, layout=Layout.OPAQUE
)
class UniformNumbers(FqtOp):
    """24 random bits of each element as a number from 0 to below 1.

    Attributes:
        key: [2] int32, one random stream.
        size: shape of the result.

    Returns:
        ``size`` float32.
    """

    key: Operand
    size: list[int]

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        index = torch.arange(math.prod(self.size), dtype=torch.int64).view(self.size)
        return (element_hash(index, self.key) >> 8).float() * _STEP

    def fake(self) -> Tensor:
        """Returns a tensor of the shape ``size``."""
        return self.key.new_empty(self.size, dtype=torch.float32)

    def compute(self) -> te.Tensor:
        """The loop nest of one hash for each element."""

        def number(*index: Any) -> Any:
            flat: Any = tirx.const(0, "uint32")
            for i, extent in zip(index, self.size, strict=True):
                flat = flat * tirx.const(extent, "uint32") + i.astype("uint32")
            bits = element_hash_compute(flat, self.key) >> tirx.const(8, "uint32")
            return bits.astype("float32") * tirx.const(_STEP, "float32")

        return te.compute(self.size, number, name="uniform_numbers")

    def cost(self) -> Cost:
        """Ten integer operations an element."""
        count = math.prod(self.size)
        return Cost(flops=10 * count, bytes_moved=4 * count)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """One number for each sample, and one for each element."""
        key = torch.tensor([12345, -6789], dtype=torch.int32)
        yield key, [8, 1, 1]
        yield key, [7, 5, 3]

    def onnx_body(self, op: Body) -> str:
        """Writes the nodes of one hash for each element."""
        size = op.integers("size")
        count = op("ReduceProd", size, op.constant([0], "int64"))
        bits = shift_right(op, element_hash_onnx(op, op.cast(op.range(count), "uint32"), self.key), 8)
        numbers = op("Mul", op.cast(bits, "float32"), op.constant(_STEP, "float32"))
        return op("Reshape", numbers, size)
