"""``fqt::quantize_channels``: stochastic codes of a gradient, one grid per kept channel (SCQ, weight-gradient side)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.counter_random import flat_index
from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_bits import rounded as rounded_onnx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.lib.stochastic_code import rounded, rounded_compute
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, OptionalOperand, define, tensor_bytes
from fqt_deploy.ops.quantization.quantization_grid import QuantizationGrid
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.ELEMENTWISE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class QuantizeChannels(FqtOp):
    """Codes of ``g`` for the channels in ``index``.

    Attributes:
        g: [N, P, C] float32.
        index: [K] int32 kept channels, or None for all.
        zero: [K] float32.
        reciprocal: [K] float32.
        key: [2] int32 random stream; the counter is the element's position in ``g``.
        bits: width of a code.

    Returns:
        [N, P, K] uint8.
    """

    g: Operand
    index: OptionalOperand
    zero: Operand
    reciprocal: Operand
    key: Operand
    bits: int

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        g = self.g
        counter = torch.arange(g.numel()).view(g.shape)
        if self.index is not None:
            g, counter = g[:, :, self.index.long()], counter[:, :, self.index.long()]
        return rounded(g, self.zero, self.reciprocal, counter, self.key, self.bits)

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        kept = self.g.shape[2] if self.index is None else self.index.shape[0]
        if self.g.ndim != 3 or self.zero.shape != (kept,) or self.reciprocal.shape != (kept,):
            raise ValueError(
                f"gradient {tuple(self.g.shape)} and grid {tuple(self.zero.shape)} do not match for {kept} channels"
            )
        return self.g.new_empty((*self.g.shape[:2], kept), dtype=torch.uint8)

    def compute(self) -> te.Tensor:
        """The loop nest: element-wise."""
        return self.codes("quantize_channels")

    def codes(self, name: str) -> te.Tensor:
        """The stage ``name`` that computes the codes, [N, P, K] uint8."""
        g, index = self.g, self.index
        samples, positions, _ = shape = tuple(int(d) for d in g.shape)

        def code(n: Any, p: Any, k: Any) -> Any:
            c = k if index is None else index[k]
            counter = flat_index((n, p, c), shape)
            code = rounded_compute(g[n, p, c], self.zero[k], self.reciprocal[k], counter, self.key, self.bits)
            return code.astype("uint8")

        return te.compute((samples, positions, int(self.zero.shape[0])), code, name=name)

    def cost(self) -> Cost:
        """The cost: twenty operations an element."""
        kept = self.fake()
        return Cost(flops=20 * kept.numel(), bytes_moved=5 * tensor_bytes(kept))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: all or some channels, every width, a constant channel, partial words of positions, many kept."""
        generator = torch.Generator().manual_seed(0)
        key = torch.tensor([123456789, -987654321], dtype=torch.int32)
        for shape, bits, kept in (
            ((4, 16, 64), 4, 16),
            ((5, 9, 33), 2, None),
            ((2, 3, 7), 8, 2),
            ((3, 16, 32), 1, None),
            ((1, 1, 10), 4, 1),
            ((2, 4, 320), 2, 256),
        ):
            g = torch.randn(shape, generator=generator)
            g[:, :, 0] = -0.5
            index = None if kept is None else torch.randperm(shape[2], generator=generator)[:kept].sort()[0].int()
            columns = (g if index is None else g[:, :, index.long()]).flatten(0, 1)
            grid = QuantizationGrid(
                columns.amin(0), columns.amax(0), bits, "zero" if bits > 1 else "minmax"
            ).reference()
            yield g, index, grid[0], grid[1], key, bits

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: codes of the gathered channels."""
        kept = op("Gather", self.g, self.index, axis=2)
        rows = op("ReduceProd", op("Shape", self.g, end=2), op.constant([0], "int64"))
        start = op("Mul", op.reshape(op.range(rows), -1, 1), op.extent(self.g, 2))
        flat = op.cast(op("Add", start, op.cast(self.index, "int64")), "uint32")
        counter = op.reshape(flat, op("Shape", kept))
        return rounded_onnx(op, kept, self.zero, self.reciprocal, counter, self.key, op.integer("bits"))

    def onnx_neutral(self) -> dict[str, Tensor]:
        """Neutral values: the index of all channels."""
        return {"index": torch.arange(self.g.shape[2], dtype=torch.int32)}
