"""``fqt::quantize_pack_samples``: ``quantize_samples`` whose codes leave as bit-planes over channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_bits import pack, planes_of_codes
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.lib.packed_words import WORD, bit_of, pack_last_axis, packed, values_to_pack, word_count
from fqt_deploy.ops.op import Cost, Kind, define
from fqt_deploy.ops.quantization.quantize_samples import QuantizeSamples
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.ROOT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class QuantizePackSamples(QuantizeSamples):
    """Plane p of position (k, p) holds bit p of its codes.

    Attributes:
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

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        codes = super().reference()
        return torch.stack([pack_last_axis((codes >> plane) & 1 > 0) for plane in range(self.bits)], 2)

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        kept, positions, channels = super().fake().shape
        return self.g.new_empty((kept, positions, self.bits, word_count(channels)), dtype=torch.int32)

    def compute(self) -> te.Tensor:
        """The loop nest: codes in one pass, bits collected in another."""
        kept, positions, channels = self.extents()
        codes = values_to_pack((kept, positions, channels), self.code, "quantize_pack_samples_codes")

        def bit(n: Any, p: Any, plane: Any, word: Any, k: Any) -> Any:
            c = word * WORD + k
            code = codes[n, p, c].astype("int32")
            if int(codes.shape[-1]) % WORD:
                code = tirx.if_then_else(c < channels, code, 0)
            return bit_of(code, plane)

        return packed((kept, positions, self.bits, word_count(channels)), bit, name="quantize_pack_samples")

    def cost(self) -> Cost:
        """The cost: twenty operations an element."""
        kept = self.zero.shape[0] * self.g.shape[1] * self.g.shape[2]
        return Cost(flops=20 * kept, bytes_moved=4 * kept + self.bits * kept // 8)

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: codes, planes, words."""
        codes = super().onnx_body(op)
        return pack(op, planes_of_codes(op, codes, op.integer("bits")))
