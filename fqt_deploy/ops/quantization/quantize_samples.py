"""``fqt::quantize_samples``: stochastic codes of a gradient, one grid per kept sample (SCQ, activation side)."""

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


def reference(
    g: Tensor, alpha: Tensor | None, index: Tensor | None, zero: Tensor, reciprocal: Tensor, key: Tensor, bits: int
) -> Tensor:
    """Codes of ``alpha * g`` for the samples in ``index``.

    Args:
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
    counter = torch.arange(g.numel()).view(g.shape)
    if index is not None:
        g, counter = g[index.long()], counter[index.long()]
    scaled = g if alpha is None else g * alpha
    return rounded(scaled, zero.view(-1, 1, 1), reciprocal.view(-1, 1, 1), counter, key, bits)


def fake(
    g: Tensor, alpha: Tensor | None, index: Tensor | None, zero: Tensor, reciprocal: Tensor, key: Tensor, bits: int
) -> Tensor:
    """Shape rule of ``reference``."""
    kept = g.shape[0] if index is None else index.shape[0]
    if g.ndim != 3 or zero.shape != (kept,) or reciprocal.shape != (kept,):
        raise ValueError(f"gradient {tuple(g.shape)} and grid {tuple(zero.shape)} do not match for {kept} samples")
    return g.new_empty((kept, *g.shape[1:]), dtype=torch.uint8)


def compute(
    g: te.Tensor, alpha: Any, index: Any, zero: te.Tensor, reciprocal: te.Tensor, key: te.Tensor, bits: int
) -> te.Tensor:
    """Element-wise."""
    return codes(g, alpha, index, zero, reciprocal, key, bits, name="quantize_samples", dtype="uint8")


def codes(
    g: te.Tensor, alpha: Any, index: Any, zero: te.Tensor, reciprocal: te.Tensor, key: te.Tensor, bits: int,
    *, name: str, dtype: str,
) -> te.Tensor:  # fmt: skip
    """The stage that computes the codes, [K, P, C] of ``dtype``."""
    _, positions, channels = shape = tuple(int(d) for d in g.shape)

    def code(k: Any, p: Any, c: Any) -> Any:
        n = k if index is None else index[k]
        value = g[n, p, c] if alpha is None else g[n, p, c] * alpha[c]
        return rounded_compute(value, zero[k], reciprocal[k], flat_index((n, p, c), shape), key, bits).astype(dtype)

    return te.compute((int(zero.shape[0]), positions, channels), code, name=name)


def cost(
    g: Tensor, alpha: Tensor | None, index: Tensor | None, zero: Tensor, reciprocal: Tensor, key: Tensor, bits: int
) -> Cost:
    """Twenty operations an element."""
    kept = fake(g, alpha, index, zero, reciprocal, key, bits)
    return Cost(flops=20 * kept.numel(), bytes_moved=5 * tensor_bytes(kept))


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
    ):
        g = torch.randn(shape, generator=generator)
        g[-1] = 0.25
        alpha = torch.rand(shape[2], generator=generator) if scaled else None
        index = None if kept is None else torch.tensor(kept, dtype=torch.int32)
        rows = (g if alpha is None else g * alpha)[slice(None) if kept is None else kept].flatten(1)
        grid = quantization_grid.reference(rows.amin(1), rows.amax(1), bits, "zero" if bits > 1 else "minmax")
        yield g, alpha, index, grid[0], grid[1], key, bits


def onnx_neutral(
    g: Tensor, alpha: Tensor | None, index: Tensor | None, zero: Tensor, reciprocal: Tensor, key: Tensor, bits: int
) -> dict[str, Tensor]:
    """A scale of 1; all samples."""
    return {"alpha": torch.ones(g.shape[2]), "index": torch.arange(g.shape[0], dtype=torch.int32)}


def onnx_body(op: Body, g: str, alpha: str, index: str, zero: str, reciprocal: str, key: str) -> str:
    """Codes of the gathered samples."""
    kept = op("Gather", g, index, axis=0)
    inner = op("ReduceProd", op("Shape", g, start=1), op.constant([0], "int64"))
    start = op("Mul", op.reshape(op.cast(index, "int64"), -1, 1), inner)
    flat = op.cast(op("Add", start, op.range(inner)), "uint32")
    counter = op.reshape(flat, op("Shape", kept))
    low, per_unit = (op.reshape(value, -1, 1, 1) for value in (zero, reciprocal))
    return rounded_onnx(op, op("Mul", kept, alpha), low, per_unit, counter, key, op.integer("bits"))


quantize_samples = OpSpec(
    "quantize_samples",
    OpKind.ELEMENTWISE,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    onnx=OnnxFunction(onnx_body, neutral=onnx_neutral),
).register()
