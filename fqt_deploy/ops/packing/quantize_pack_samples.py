"""``fqt::quantize_pack_samples``: ``quantize_samples`` whose codes leave as bit-planes over channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib.onnx_bits import pack, planes_of_codes
from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.lib.packed_words import WORD, bit_of, pack_last_axis, packed, word_count
from fqt_deploy.ops.quantization import quantize_samples
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec


def reference(
    g: Tensor, alpha: Tensor | None, index: Tensor | None, zero: Tensor, reciprocal: Tensor, key: Tensor, bits: int
) -> Tensor:
    """Plane p of position (k, p) holds bit p of its codes.

    Args:
        g: [N, P, C] float32.
        alpha: [C] float32, or None for 1.
        index: [K] int32 kept samples, or None for all.
        zero: [K] float32.
        reciprocal: [K] float32.
        key: [2] int32 random stream.
        bits: width of a code, B.

    Returns:
        [K, P, B, ceil(C / 32)] int32.
    """
    codes = quantize_samples.reference(g, alpha, index, zero, reciprocal, key, bits)
    return torch.stack([pack_last_axis((codes >> plane) & 1 > 0) for plane in range(bits)], 2)


def fake(
    g: Tensor, alpha: Tensor | None, index: Tensor | None, zero: Tensor, reciprocal: Tensor, key: Tensor, bits: int
) -> Tensor:
    """Shape rule of ``reference``."""
    kept, positions, channels = quantize_samples.fake(g, alpha, index, zero, reciprocal, key, bits).shape
    return g.new_empty((kept, positions, bits, word_count(channels)), dtype=torch.int32)


def compute(
    g: te.Tensor, alpha: Any, index: Any, zero: te.Tensor, reciprocal: te.Tensor, key: te.Tensor, bits: int
) -> te.Tensor:
    """Codes in one pass, bits collected in another."""
    codes = quantize_samples.codes(
        g, alpha, index, zero, reciprocal, key, bits, name="quantize_pack_samples_codes", dtype="uint8"
    )
    kept, positions, channels = (int(d) for d in codes.shape)

    def bit(n: Any, p: Any, plane: Any, word: Any, k: Any) -> Any:
        c = word * WORD + k
        code = codes[n, p, c].astype("int32")
        if channels % WORD:
            code = tirx.if_then_else(c < channels, code, 0)
        return bit_of(code, plane)

    return packed((kept, positions, bits, word_count(channels)), bit, name="quantize_pack_samples")


def cost(
    g: Tensor, alpha: Tensor | None, index: Tensor | None, zero: Tensor, reciprocal: Tensor, key: Tensor, bits: int
) -> Cost:
    """Twenty operations an element."""
    kept = zero.shape[0] * g.shape[1] * g.shape[2]
    return Cost(flops=20 * kept, bytes_moved=4 * kept + bits * kept // 8)


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """As for ``quantize_samples``."""
    yield from quantize_samples.sample_inputs()


def onnx_body(op: Body, g: str, alpha: str, index: str, zero: str, reciprocal: str, key: str) -> str:
    """Codes, planes, words."""
    codes = quantize_samples.onnx_body(op, g, alpha, index, zero, reciprocal, key)
    return pack(op, planes_of_codes(op, codes, op.integer("bits")))


quantize_pack_samples = OpSpec(
    "quantize_pack_samples",
    OpKind.ROOT,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    onnx=OnnxFunction(onnx_body, neutral=quantize_samples.onnx_neutral),
).register()
