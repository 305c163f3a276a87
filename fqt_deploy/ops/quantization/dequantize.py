"""``fqt::dequantize``: from integer codes back to gradient values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_body import Attributes, Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.ELEMENTWISE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class Dequantize(FqtOp):
    """The values ``scale * code + zero``, one scale and zero per index of ``axis``.

    Attributes:
        codes: [N, P, C] uint8.
        scale: [G] float32, G the extent of ``axis``.
        zero: [G] float32.
        axis: 0 for groups that are samples, 2 for groups that are channels.

    Returns:
        [N, P, C] float32.
    """

    codes: Operand
    scale: Operand
    zero: Operand
    axis: int

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        shape = [-1 if a == self.axis else 1 for a in range(3)]
        return self.codes.float() * self.scale.view(shape) + self.zero.view(shape)

    def fake(self) -> Tensor:
        """Shape rule: the shape of ``codes``, float32."""
        if self.scale.shape != (self.codes.shape[self.axis],):
            raise ValueError(
                f"scale {tuple(self.scale.shape)} does not match axis {self.axis} of {tuple(self.codes.shape)}"
            )
        return torch.empty_like(self.codes, dtype=torch.float32)

    def compute(self) -> te.Tensor:
        """The loop nest: element-wise."""
        return te.compute(
            self.codes.shape,
            lambda *i: self.codes[i].astype("float32") * self.scale[i[self.axis]] + self.zero[i[self.axis]],
            name="dequantize",
        )

    def cost(self) -> Cost:
        """The cost: two operations an element."""
        return Cost(flops=2 * self.codes.numel(), bytes_moved=5 * tensor_bytes(self.codes))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: grids along samples and along channels."""
        g = torch.Generator().manual_seed(0)
        codes = torch.randint(0, 16, (3, 4, 5), generator=g, dtype=torch.uint8)
        yield codes, torch.rand(3, generator=g), torch.randn(3, generator=g), 0
        yield codes, torch.rand(5, generator=g), torch.randn(5, generator=g), 2

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: element-wise."""
        step, offset = (op("Reshape", value, op.integers("shape")) for value in (self.scale, self.zero))
        return op("Add", op("Mul", op.cast(self.codes, "float32"), step), offset)

    def onnx_attributes(self) -> Attributes:
        """The attributes in ONNX: ``shape`` is that of the grid beside the codes."""
        return {"shape": [-1 if a == self.axis else 1 for a in range(3)]}
