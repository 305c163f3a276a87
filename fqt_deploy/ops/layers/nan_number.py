"""``fqt::nan_number``: a number that says that a value holds NaN."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from fqt_deploy.ops.lib.float32 import is_nan
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples

NO_NAN = 2**22
"""The number of what holds no NaN: larger than all others."""


@define(kind=Kind.ROOT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class NanNumber(FqtOp):
    """The given number if an element of a tensor is NaN, else ``NO_NAN``.

    Attributes:
        x: float32 of any shape.
        number: from 0 to below ``NO_NAN``.

    Returns:
        int32 without axes.
    """

    x: Operand
    number: int

    varying: ClassVar[tuple[str, ...]] = ("number",)

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        found = self.x.isnan().any()
        return torch.where(found, self.number, NO_NAN).to(torch.int32)

    def fake(self) -> Tensor:
        """Shape rule: any shape -> []."""
        return self.x.new_empty((), dtype=torch.int32)

    def compute(self) -> te.Tensor:
        """A minimum over all elements."""
        axes = [te.reduce_axis((0, int(extent)), f"r{i}") for i, extent in enumerate(self.x.shape)]
        given: Any = self.number
        number = given() if isinstance(given, te.Tensor) else tirx.const(given, "int32")
        none = tirx.const(NO_NAN, "int32")
        if not axes:
            return te.compute((), lambda: tirx.Select(is_nan(self.x[()]), number, none), name="nan_number")
        return te.compute(
            (), lambda: te.min(tirx.Select(is_nan(self.x[tuple(axes)]), number, none), axis=axes), name="nan_number"
        )

    def cost(self) -> Cost:
        """Returns one comparison for each element."""
        return Cost(flops=self.x.numel(), bytes_moved=tensor_bytes(self.x))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Finite numbers, infinities, NaN at either end and with its sign set, no axes."""
        g = torch.Generator().manual_seed(0)
        for shape in ((37,), (3, 64), (2, 3, 5), ()):
            yield torch.randn(shape, generator=g), 3
        yield torch.tensor([math.inf, -math.inf, 0.0, -0.0]), 3
        for place in (0, 16):
            x = torch.randn(17, generator=g)
            x[place] = math.nan
            yield x, 5
            yield -x, 0

    def onnx_body(self, op: Body) -> str:
        """The largest of the tests."""
        flat = op.reshape(op.cast(op("IsNaN", self.x), "int32"), -1)
        found = op("ReduceMax", flat, op.constant([0], "int64"), keepdims=0)
        none = op.constant(NO_NAN, "int32")
        number = op.cast(op.integer("number"), "int32")
        return op("Where", op.cast(found, "bool"), number, none)
