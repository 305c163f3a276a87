"""``fqt::quantize_channels``: stochastic codes of a gradient, one grid per kept channel (SCQ, weight-gradient side)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te

from fqt_deploy.ops.lib.counter_random import flat_index
from fqt_deploy.ops.lib.onnx_bits import rounded as rounded_onnx
from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.lib.stochastic_code import rounded, rounded_compute
from fqt_deploy.ops.quantization import quantization_grid
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(g: Tensor, index: Tensor | None, zero: Tensor, reciprocal: Tensor, key: Tensor, bits: int) -> Tensor:
    """Codes of ``g`` for the channels in ``index``.

    Args:
        g: [N, P, C] float32.
        index: [K] int32 kept channels, or None for all.
        zero: [K] float32.
        reciprocal: [K] float32.
        key: [2] int32 random stream; the counter is the element's position in ``g``.
        bits: width of a code.

    Returns:
        [N, P, K] uint8.
    """
    counter = torch.arange(g.numel()).view(g.shape)
    if index is not None:
        g, counter = g[:, :, index.long()], counter[:, :, index.long()]
    return rounded(g, zero, reciprocal, counter, key, bits)


def fake(g: Tensor, index: Tensor | None, zero: Tensor, reciprocal: Tensor, key: Tensor, bits: int) -> Tensor:
    """Shape rule of ``reference``."""
    kept = g.shape[2] if index is None else index.shape[0]
    if g.ndim != 3 or zero.shape != (kept,) or reciprocal.shape != (kept,):
        raise ValueError(f"gradient {tuple(g.shape)} and grid {tuple(zero.shape)} do not match for {kept} channels")
    return g.new_empty((*g.shape[:2], kept), dtype=torch.uint8)


def compute(g: te.Tensor, index: Any, zero: te.Tensor, reciprocal: te.Tensor, key: te.Tensor, bits: int) -> te.Tensor:
    """Element-wise."""
    return codes(g, index, zero, reciprocal, key, bits, name="quantize_channels")


def codes(
    g: te.Tensor, index: Any, zero: te.Tensor, reciprocal: te.Tensor, key: te.Tensor, bits: int, *, name: str
) -> te.Tensor:
    """The stage that computes the codes, [N, P, K] uint8."""
    samples, positions, _ = shape = tuple(int(d) for d in g.shape)

    def code(n: Any, p: Any, k: Any) -> Any:
        c = k if index is None else index[k]
        counter = flat_index((n, p, c), shape)
        return rounded_compute(g[n, p, c], zero[k], reciprocal[k], counter, key, bits).astype("uint8")

    return te.compute((samples, positions, int(zero.shape[0])), code, name=name)


def cost(g: Tensor, index: Tensor | None, zero: Tensor, reciprocal: Tensor, key: Tensor, bits: int) -> Cost:
    """Twenty operations an element."""
    kept = fake(g, index, zero, reciprocal, key, bits)
    return Cost(flops=20 * kept.numel(), bytes_moved=5 * tensor_bytes(kept))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """All or some channels, every width, a constant channel, partial words of positions, many kept."""
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
        grid = quantization_grid.reference(columns.amin(0), columns.amax(0), bits, "zero" if bits > 1 else "minmax")
        yield g, index, grid[0], grid[1], key, bits


def onnx_neutral(
    g: Tensor, index: Tensor | None, zero: Tensor, reciprocal: Tensor, key: Tensor, bits: int
) -> dict[str, Tensor]:
    """All channels."""
    return {"index": torch.arange(g.shape[2], dtype=torch.int32)}


def onnx_body(op: Body, g: str, index: str, zero: str, reciprocal: str, key: str) -> str:
    """Codes of the gathered channels."""
    kept = op("Gather", g, index, axis=2)
    rows = op("ReduceProd", op("Shape", g, end=2), op.constant([0], "int64"))
    start = op("Mul", op.reshape(op.range(rows), -1, 1), op.extent(g, 2))
    flat = op.cast(op("Add", start, op.cast(index, "int64")), "uint32")
    counter = op.reshape(flat, op("Shape", kept))
    return rounded_onnx(op, kept, zero, reciprocal, counter, key, op.integer("bits"))


quantize_channels = OpSpec(
    "quantize_channels",
    OpKind.ELEMENTWISE,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    onnx=OnnxFunction(onnx_body, neutral=onnx_neutral),
).register()
