"""``fqt::pack_weight``: sign bits of a convolution's weight, in the order that the forward product reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib import onnx_bits
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.lib.packed_words import PANEL, WORD, pack_last_axis, packed, panel_count, to_panels, word_count
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


def packed_panels(extents: Sequence[int], bit: Callable[..., Any], name: str) -> te.Tensor:
    """Loop nest: panels of the bits of a weight, [ceil(O / 16), KH * KW * ceil(I / 32), 16] int32; 0 past the ends.

    Args:
        extents: O, I, KH and KW.
        bit: the bit of an element by its four indices, 0 or 1 int32.
        name: of the stage.
    """
    o, i, kh, kw = extents
    words = word_count(i)

    def inside(panel: Any, tap_word: Any, lane: Any, k: Any) -> Any:
        tap, channel = tap_word // words, tap_word % words * WORD + k
        row = panel * PANEL + lane
        value = bit(row, channel, tap // kw, tap % kw)
        return tirx.if_then_else(tirx.all(row < o, channel < i), value, tirx.const(0, "int32"))

    return packed((panel_count(o), kh * kw * words, PANEL), inside, name=name)


def packed_rows(op: Body, w: str) -> str:
    """Panels of the signs of ``w`` [rows, KH, KW, channels]."""
    bits = onnx_bits.pack(op, op("Greater", w, op.constant(0.0, "float32")))
    return onnx_bits.to_panels(op, op("Flatten", bits, axis=1))


@define(kind=Kind.ROOT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class PackWeight(FqtOp):
    """Pack over input channels, tap after tap; sixteen output channels are interleaved.

    Attributes:
        w: [O, I, KH, KW] float32.

    Returns:
        [ceil(O / 16), KH * KW * ceil(I / 32), 16] int32.
    """

    w: Operand

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        bits = pack_last_axis(self.w.permute(0, 2, 3, 1) > 0)
        return to_panels(bits.flatten(1))

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        if self.w.ndim != 4:
            raise ValueError(f"expected [O, I, KH, KW], got {tuple(self.w.shape)}")
        o, i, kh, kw = self.w.shape
        return self.w.new_empty((panel_count(o), kh * kw * word_count(i), PANEL), dtype=torch.int32)

    def compute(self) -> te.Tensor:
        """The loop nest: words of compared channels, whose bits past the last channel are 0."""
        extents = [int(d) for d in self.w.shape]
        return packed_panels(extents, lambda *at: (self.w[at] > 0.0).astype("int32"), "pack_weight")

    def cost(self) -> Cost:
        """The cost: one comparison an element."""
        return Cost(flops=self.w.numel(), bytes_moved=tensor_bytes(self.w) + self.w.numel() // 8)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: whole panels, partial ones, linear layers of either kind."""
        g = torch.Generator().manual_seed(0)
        yield (torch.randn(32, 64, 3, 3, generator=g),)
        yield (torch.randn(10, 33, 3, 2, generator=g),)
        yield (torch.randn(17, 70, 1, 1, generator=g),)
        yield (torch.randn(32, 64, 1, 1, generator=g),)

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: channels last, pack, interleave rows."""
        return packed_rows(op, op("Transpose", self.w, perm=[0, 2, 3, 1]))
