"""``fqt::sign``: the 1-bit quantizer of weights and activations, and its straight-through gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, broadcast, zero_with_any


@define(
    kind=Kind.ELEMENTWISE, batch=broadcast, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.ELEMENTWISE
)
class Sign(FqtOp):
    """+1 where ``x > 0``, else -1; zero of either sign is -1.

    Attributes:
        x: [...] float32.

    Returns:
        [...] float32.
    """

    x: Operand

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        return torch.where(self.x > 0, 1.0, -1.0)

    def fake(self) -> Tensor:
        """Shape rule: a tensor like ``x``."""
        return torch.empty_like(self.x, memory_format=torch.contiguous_format)

    def compute(self) -> te.Tensor:
        """The loop nest: element-wise selection."""
        one = tirx.const(1.0, "float32")
        return te.compute(self.x.shape, lambda *i: tirx.Select(self.x[i] > 0.0, one, -one), name="sign")

    def cost(self) -> Cost:
        """The cost: one comparison an element."""
        return Cost(flops=self.x.numel(), bytes_moved=2 * tensor_bytes(self.x))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: random values, and both zeros."""
        g = torch.Generator().manual_seed(0)
        yield (torch.randn(5, 33, generator=g),)
        yield (torch.tensor([0.0, -0.0, 1e-30, -1e-30, 2.0, -2.0]),)

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: element-wise selection."""
        positive = op("Greater", self.x, op.constant(0.0, "float32"))
        return op("Where", positive, op.constant(1.0, "float32"), op.constant(-1.0, "float32"))


@define(
    kind=Kind.ELEMENTWISE,
    batch=broadcast,
    zero=zero_with_any("gradient"),
    sign=ANY_SIGN,
    nan=Nan.UNKNOWN,
    layout=Layout.ELEMENTWISE,
)
class StraightThrough(FqtOp):
    """The gradient where ``|x| < 1``, else 0.

    Attributes:
        gradient: [...] float32.
        x: [...] float32, what the sign was taken of.

    Returns:
        [...] float32.
    """

    gradient: Operand
    x: Operand

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        return torch.where(self.x.abs() < 1, self.gradient, 0.0)

    def fake(self) -> Tensor:
        """Shape rule: a tensor like ``gradient``."""
        if self.gradient.shape != self.x.shape:
            raise ValueError(f"gradient {tuple(self.gradient.shape)} and input {tuple(self.x.shape)} differ in shape")
        return torch.empty_like(self.gradient, memory_format=torch.contiguous_format)

    def compute(self) -> te.Tensor:
        """The loop nest: element-wise selection."""
        zero = tirx.const(0.0, "float32")
        return te.compute(
            self.x.shape,
            lambda *i: tirx.Select(tirx.abs(self.x[i]) < 1.0, self.gradient[i], zero),
            name="straight_through",
        )

    def cost(self) -> Cost:
        """The cost: one comparison an element."""
        return Cost(flops=2 * self.x.numel(), bytes_moved=3 * tensor_bytes(self.x))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: random values, and the edges of the pass band."""
        g = torch.Generator().manual_seed(0)
        yield torch.randn(5, 33, generator=g), torch.randn(5, 33, generator=g)
        yield torch.ones(4), torch.tensor([1.0, -1.0, 0.999, -0.999])

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: element-wise selection."""
        inside = op("Less", op("Abs", self.x), op.constant(1.0, "float32"))
        return op("Where", inside, self.gradient, op.constant(0.0, "float32"))
