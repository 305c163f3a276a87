"""``fqt::quantize_pack_channels``: ``quantize_channels`` whose codes leave as bit-planes over positions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib.onnx_bits import pack, planes_of_codes
from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.lib.packed_words import WORD, bit_of, pack_last_axis, packed, word_count
from fqt_deploy.ops.quantization import quantize_channels
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec


def reference(g: Tensor, index: Tensor | None, zero: Tensor, reciprocal: Tensor, key: Tensor, bits: int) -> Tensor:
    """Bit k of word w of plane p is bit p of the code of position 32 w + k.

    Args:
        g: [N, P, C] float32.
        index: [K] int32 kept channels, or None for all.
        zero: [K] float32.
        reciprocal: [K] float32.
        key: [2] int32 random stream.
        bits: width of a code, B.

    Returns:
        [ceil(N * P / 32), B, K] int32.
    """
    codes = quantize_channels.reference(g, index, zero, reciprocal, key, bits).flatten(0, 1).t()
    planes = torch.stack([pack_last_axis((codes >> plane) & 1 > 0) for plane in range(bits)], 1)
    return planes.permute(2, 1, 0).contiguous()


def fake(g: Tensor, index: Tensor | None, zero: Tensor, reciprocal: Tensor, key: Tensor, bits: int) -> Tensor:
    """Shape rule of ``reference``."""
    samples, positions, kept = quantize_channels.fake(g, index, zero, reciprocal, key, bits).shape
    return g.new_empty((word_count(samples * positions), bits, kept), dtype=torch.int32)


def compute(g: te.Tensor, index: Any, zero: te.Tensor, reciprocal: te.Tensor, key: te.Tensor, bits: int) -> te.Tensor:
    """Codes in one pass, bits collected in another."""
    codes = quantize_channels.codes(g, index, zero, reciprocal, key, bits, name="quantize_pack_channels_codes")
    samples, positions, kept = (int(d) for d in codes.shape)
    total = samples * positions

    def bit(word: Any, plane: Any, c: Any, k: Any) -> Any:
        position = word * WORD + k
        code = codes[position // positions, position % positions, c].astype("int32")
        if total % WORD:
            code = tirx.if_then_else(position < total, code, 0)
        return bit_of(code, plane)

    return packed((word_count(total), bits, kept), bit, name="quantize_pack_channels")


def cost(g: Tensor, index: Tensor | None, zero: Tensor, reciprocal: Tensor, key: Tensor, bits: int) -> Cost:
    """Twenty operations an element."""
    kept = g.shape[0] * g.shape[1] * zero.shape[0]
    return Cost(flops=20 * kept, bytes_moved=4 * kept + bits * kept // 8)


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """As for ``quantize_channels``."""
    yield from quantize_channels.sample_inputs()


def onnx_body(op: Body, g: str, index: str, zero: str, reciprocal: str, key: str) -> str:
    """Codes, planes over positions, words."""
    codes = quantize_channels.onnx_body(op, g, index, zero, reciprocal, key)
    by_channel = op("Transpose", op.reshape(codes, -1, op.extent(codes, 2)), perm=[1, 0])
    words = pack(op, planes_of_codes(op, by_channel, op.integer("bits")))  # [K, B, W]
    return op("Transpose", words, perm=[2, 1, 0])


quantize_pack_channels = OpSpec(
    "quantize_pack_channels",
    OpKind.ROOT,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    onnx=OnnxFunction(onnx_body, neutral=quantize_channels.onnx_neutral),
).register()
