"""``fqt::quantize_samples``: stochastic codes of a gradient, one grid per kept sample (SCQ, activation side)."""

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
class QuantizeSamples(FqtOp):
    """Codes of ``alpha * g`` for the samples in ``index``.

    Attributes:
        g: [N, P, C] float32.
        alpha: [C] float32, or None for 1.
        index: [K] int32 kept samples, or None for all.
        zero: [K] float32.
        reciprocal: [K] float32.
        key: [2] int32 random stream; the counter is the element's position in ``g``.
        bits: width of a code.

    Returns:
        [K, P, C] uint8.
    """

    g: Operand
    alpha: OptionalOperand
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
            g, counter = g[self.index.long()], counter[self.index.long()]
        scaled = g if self.alpha is None else g * self.alpha
        return rounded(scaled, self.zero.view(-1, 1, 1), self.reciprocal.view(-1, 1, 1), counter, self.key, self.bits)

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        kept = self.g.shape[0] if self.index is None else self.index.shape[0]
        if self.g.ndim != 3 or self.zero.shape != (kept,) or self.reciprocal.shape != (kept,):
            raise ValueError(
                f"gradient {tuple(self.g.shape)} and grid {tuple(self.zero.shape)} do not match for {kept} samples"
            )
        return self.g.new_empty((kept, *self.g.shape[1:]), dtype=torch.uint8)

    def compute(self) -> te.Tensor:
        """The loop nest: element-wise."""
        return te.compute(self.extents(), self.code, name="quantize_samples")

    def extents(self) -> tuple[int, int, int]:
        """The extents of the codes: kept samples, positions, channels."""
        _, positions, channels = (int(d) for d in self.g.shape)
        return int(self.zero.shape[0]), positions, channels

    def code(self, k: Any, p: Any, c: Any) -> Any:
        """The code of channel ``c`` at position ``p`` of kept sample ``k``, as uint8."""
        n = k if self.index is None else self.index[k]
        value = self.g[n, p, c] if self.alpha is None else self.g[n, p, c] * self.alpha[c]
        counter = flat_index((n, p, c), tuple(int(d) for d in self.g.shape))
        code = rounded_compute(value, self.zero[k], self.reciprocal[k], counter, self.key, self.bits)
        return code.astype("uint8")

    def cost(self) -> Cost:
        """The cost: twenty operations an element."""
        kept = self.fake()
        return Cost(flops=20 * kept.numel(), bytes_moved=5 * tensor_bytes(kept))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """All or some samples, with and without scale, every width, a constant sample, partial words."""
        generator = torch.Generator().manual_seed(0)
        key = torch.tensor([123456789, -987654321], dtype=torch.int32)
        for shape, bits, kept, scaled in (
            ((6, 16, 64), 4, [1, 4], True),
            ((5, 9, 33), 2, None, False),
            ((4, 3, 7), 8, [0, 3], False),
            ((3, 16, 32), 1, None, True),
            ((1, 1, 10), 4, None, True),
            ((3, 5, 72), 4, [0, 2], True),
            ((2, 7, 16), 2, None, False),
        ):
            g = torch.randn(shape, generator=generator)
            g[-1] = 0.25
            alpha = torch.rand(shape[2], generator=generator) if scaled else None
            index = None if kept is None else torch.tensor(kept, dtype=torch.int32)
            rows = (g if alpha is None else g * alpha)[slice(None) if kept is None else kept].flatten(1)
            grid = QuantizationGrid(rows.amin(1), rows.amax(1), bits, "zero" if bits > 1 else "minmax").reference()
            yield g, alpha, index, grid[0], grid[1], key, bits

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: codes of the gathered samples."""
        kept = op("Gather", self.g, self.index, axis=0)
        inner = op("ReduceProd", op("Shape", self.g, start=1), op.constant([0], "int64"))
        start = op("Mul", op.reshape(op.cast(self.index, "int64"), -1, 1), inner)
        flat = op.cast(op("Add", start, op.range(inner)), "uint32")
        counter = op.reshape(flat, op("Shape", kept))
        low, per_unit = (op.reshape(value, -1, 1, 1) for value in (self.zero, self.reciprocal))
        return rounded_onnx(op, op("Mul", kept, self.alpha), low, per_unit, counter, self.key, op.integer("bits"))

    def onnx_neutral(self) -> dict[str, Tensor]:
        """Neutral values: a scale of 1, and the index of all samples."""
        return {"alpha": torch.ones(self.g.shape[2]), "index": torch.arange(self.g.shape[0], dtype=torch.int32)}
