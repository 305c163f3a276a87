"""``fqt::pack_signs``: the sign bits of the last axis, 32 to a word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_bits import pack
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.lib.packed_words import WORD, pack_last_axis, packed, values_to_pack, word_count
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.ROOT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class PackSigns(FqtOp):
    """Bit 1 where ``x > 0``.

    Attributes:
        x: [..., C] float32.

    Returns:
        [..., ceil(C / 32)] int32.
    """

    x: Operand

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        return pack_last_axis(self.x > 0)

    def fake(self) -> Tensor:
        """Shape rule: [..., C] -> [..., ceil(C / 32)]."""
        if self.x.ndim < 1:
            raise ValueError("a scalar has no axis to pack")
        return self.x.new_empty((*self.x.shape[:-1], word_count(self.x.shape[-1])), dtype=torch.int32)

    def compute(self) -> te.Tensor:
        """The loop nest: compare in one pass, collect the bits in another."""
        *leading, channels = (int(d) for d in self.x.shape)
        positive = values_to_pack(
            (*leading, channels), lambda *i: (self.x[i] > 0.0).astype("uint8"), "pack_signs_positive"
        )

        def bit(*index: Any) -> Any:
            *outer, word, k = index
            c = word * WORD + k
            if int(positive.shape[-1]) % WORD == 0:
                return positive[(*outer, c)]
            return tirx.if_then_else(c < channels, positive[(*outer, c)], tirx.const(0, "uint8"))

        return packed((*leading, word_count(channels)), bit, name="pack_signs")

    def cost(self) -> Cost:
        """The cost: one comparison an element."""
        return Cost(flops=self.x.numel(), bytes_moved=tensor_bytes(self.x) + self.x.numel() // 8)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: whole and partial words, zeros of both signs."""
        g = torch.Generator().manual_seed(0)
        yield (torch.randn(3, 4, 5, 64, generator=g),)
        yield (torch.randn(2, 3, 3, 33, generator=g),)
        yield (torch.randn(2, 3, 72, generator=g),)
        yield (torch.randn(7, 5, generator=g),)
        yield (torch.tensor([[0.0, -0.0, 1e-38, -1e-38]]),)

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: compare, then collect the bits."""
        return pack(op, op("Greater", self.x, op.constant(0.0, "float32")))
