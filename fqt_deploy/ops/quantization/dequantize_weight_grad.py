"""``fqt::dequantize_weight_grad``: float weight gradient from the integer product of kept channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, OptionalOperand, define, tensor_bytes
from fqt_deploy.ops.selection.scatter_rows import ScatterRows
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.ELEMENTWISE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class DequantizeWeightGrad(FqtOp):
    """The gradient ``scale * product + zero * sums`` of kept output channels, zero for pruned ones.

    Attributes:
        product: [K, ...] int32, laid out like the weight or flat, see ``bitplane_weight_grad``.
        scale: [K] float32, step of each channel's grid.
        zero: [K] float32, value of code 0.
        sums: [...] int32, see ``position_sums``.
        slot: [O] int32, row of ``product`` or -1 for a pruned channel; None where every channel was kept in order.

    Returns:
        [O, ...] float32.
    """

    product: Operand
    scale: Operand
    zero: Operand
    sums: Operand
    slot: OptionalOperand

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        per_channel = [-1, *[1] * self.sums.dim()]
        rows = self.scale.view(per_channel) * self.product.float() + self.zero.view(per_channel) * self.sums.float()
        if self.slot is not None:
            full = rows.new_zeros((self.slot.shape[0], *rows.shape[1:]))
            kept = self.slot >= 0
            full[kept] = rows[self.slot[kept].long()]
            rows = full
        return rows

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        kept, *weight = self.product.shape
        if list(self.sums.shape) != weight:
            raise ValueError(f"product {tuple(self.product.shape)} and sums {tuple(self.sums.shape)} do not match")
        if tuple(self.scale.shape) != (kept,) or tuple(self.zero.shape) != (kept,):
            raise ValueError(f"grid {tuple(self.scale.shape)}, {tuple(self.zero.shape)} does not fit {kept} channels")
        return self.scale.new_empty((kept if self.slot is None else self.slot.shape[0], *weight))

    def compute(self) -> te.Tensor:
        """The loop nest: element-wise; reads of pruned channels are guarded."""
        kept, *weight = (int(d) for d in self.product.shape)
        out_channels = kept if self.slot is None else int(self.slot.shape[0])

        def element(o: Any, *at: Any) -> Any:
            row: Any = o if self.slot is None else self.slot[o]
            value = self.scale[row] * self.product[(row, *at)].astype("float32") + self.zero[row] * self.sums[
                at
            ].astype("float32")
            return value if self.slot is None else tirx.if_then_else(row >= 0, value, tirx.const(0.0, "float32"))

        return te.compute((out_channels, *weight), element, name="dequantize_weight_grad")

    def cost(self) -> Cost:
        """The cost: three operations a kept element."""
        result = self.fake()
        slots = [] if self.slot is None else [self.slot]
        moved = tensor_bytes(self.product, self.scale, self.zero, self.sums, *slots, result)
        return Cost(flops=3 * self.product.numel(), bytes_moved=moved)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: every channel kept, some pruned, one kept, a linear layer."""
        g = torch.Generator().manual_seed(0)
        some = torch.tensor([-1, 0, 1, -1, -1, 2, 3, -1], dtype=torch.int32)
        one = torch.tensor([-1, -1, 0], dtype=torch.int32)
        cases = ((16, 32, [3, 3], None), (4, 5, [3, 1], some), (1, 64, [1, 1], one), (10, 33, [1, 1], None))
        for kept, channels, kernel, slot in cases:
            weight = (channels, *kernel) if kept > 1 else (channels * kernel[0] * kernel[1],)
            product = torch.randint(-900, 900, (kept, *weight), generator=g, dtype=torch.int32)
            sums = torch.randint(-90, 90, weight, generator=g, dtype=torch.int32)
            yield product, torch.rand(kept, generator=g), torch.randn(kept, generator=g), sums, slot

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: flat rows of kept channels, then those of all channels."""
        flat = op.cast(op.reshape(self.product, 0, -1), "float32")
        scaled = op("Mul", op.reshape(self.scale, -1, 1), flat)
        offset = op("Mul", op.reshape(self.zero, -1, 1), op.reshape(op.cast(self.sums, "float32"), 1, -1))
        rows = ScatterRows(op("Add", scaled, offset), self.slot).onnx_body(op)
        return op.reshape(rows, op("Shape", self.slot), op("Shape", self.product, start=1))

    def onnx_neutral(self) -> dict[str, Tensor]:
        """Neutral values: without slots, every row is in its place."""
        return {"slot": torch.arange(self.product.shape[0], dtype=torch.int32)}
