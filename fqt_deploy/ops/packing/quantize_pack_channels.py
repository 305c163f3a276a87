"""``fqt::quantize_pack_channels``: ``quantize_channels`` whose codes leave as bit-planes over positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_bits import pack, planes_of_codes
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.lib.packed_words import WORD, bit_of, pack_last_axis, packed, word_count
from fqt_deploy.ops.op import Cost, Kind, define
from fqt_deploy.ops.quantization.quantize_channels import QuantizeChannels
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.ROOT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class QuantizePackChannels(QuantizeChannels):
    """Bit k of word w of plane p is bit p of the code of position 32 w + k.

    Attributes:
        g: [N, P, C] float32.
        index: [K] int32 kept channels, or None for all.
        zero: [K] float32.
        reciprocal: [K] float32.
        key: [2] int32 random stream.
        bits: width of a code, B.

    Returns:
        [ceil(N * P / 32), B, K] int32.
    """

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        codes = super().reference().flatten(0, 1).t()
        planes = torch.stack([pack_last_axis((codes >> plane) & 1 > 0) for plane in range(self.bits)], 1)
        return planes.permute(2, 1, 0).contiguous()

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        samples, positions, kept = super().fake().shape
        return self.g.new_empty((word_count(samples * positions), self.bits, kept), dtype=torch.int32)

    def compute(self) -> te.Tensor:
        """The loop nest: codes in one pass, bits collected in another."""
        codes = self.codes("quantize_pack_channels_codes")
        samples, positions, kept = (int(d) for d in codes.shape)
        total = samples * positions

        def bit(word: Any, plane: Any, c: Any, k: Any) -> Any:
            position = word * WORD + k
            code = codes[position // positions, position % positions, c].astype("int32")
            if total % WORD:
                code = tirx.if_then_else(position < total, code, 0)
            return bit_of(code, plane)

        return packed((word_count(total), self.bits, kept), bit, name="quantize_pack_channels")

    def cost(self) -> Cost:
        """The cost: twenty operations an element."""
        kept = self.g.shape[0] * self.g.shape[1] * self.zero.shape[0]
        return Cost(flops=20 * kept, bytes_moved=4 * kept + self.bits * kept // 8)

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: codes, planes over positions, words."""
        codes = super().onnx_body(op)
        by_channel = op("Transpose", op.reshape(codes, -1, op.extent(codes, 2)), perm=[1, 0])
        words = pack(op, planes_of_codes(op, by_channel, op.integer("bits")))  # [K, B, W]
        return op("Transpose", words, perm=[2, 1, 0])
