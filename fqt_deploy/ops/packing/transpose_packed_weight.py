"""``fqt::transpose_packed_weight``: a packed weight, as the activation-gradient product reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib import onnx_bits
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.lib.packed_words import PANEL, WORD, bit_of, packed, panel_count, word_count
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.packing.pack_weight import PackWeight
from fqt_deploy.ops.products.binary_conv2d import signs_of_weight
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.PRODUCT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class TransposePackedWeight(FqtOp):
    """The bits over output channels instead of input channels: 1/32 of the memory that the weight itself takes.

    Attributes:
        w_bits: [ceil(O / 16), T * ceil(I / 32), 16] int32, see ``pack_weight``.
        in_channels: I.
        out_channels: O.
        taps: T.

    Returns:
        [ceil(I / 16), T * ceil(O / 32), 16] int32.
    """

    w_bits: Operand
    in_channels: int
    out_channels: int
    taps: int

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        signs = signs_of_weight(self.w_bits, self.in_channels, self.out_channels, [self.taps, 1])
        return PackWeight(signs.transpose(0, 1).float()).reference()

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        if tuple(self.w_bits.shape) != (
            panel_count(self.out_channels),
            self.taps * word_count(self.in_channels),
            PANEL,
        ):
            raise ValueError(
                f"packed weight {tuple(self.w_bits.shape)} does not fit {self.in_channels} and "
                f"{self.out_channels} channels"
            )
        return self.w_bits.new_empty((panel_count(self.in_channels), self.taps * word_count(self.out_channels), PANEL))

    def compute(self) -> te.Tensor:
        """The loop nest: gather bit by bit; bits past the last channel are 0."""
        words_in, words_out = word_count(self.in_channels), word_count(self.out_channels)

        def bit(panel: Any, tap_word: Any, lane: Any, k: Any) -> Any:
            tap, o, i = tap_word // words_out, tap_word % words_out * WORD + k, panel * PANEL + lane
            value = bit_of(self.w_bits[o // PANEL, tap * words_in + i // WORD, o % PANEL], i % WORD)
            return tirx.if_then_else(
                tirx.all(i < self.in_channels, o < self.out_channels), value, tirx.const(0, "int32")
            )

        return packed(
            (panel_count(self.in_channels), self.taps * words_out, PANEL), bit, name="transpose_packed_weight"
        )

    def cost(self) -> Cost:
        """The cost: memory traffic only."""
        return Cost(bytes_moved=tensor_bytes(self.w_bits, self.fake()))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: whole and partial words and panels, one tap and several."""
        g = torch.Generator().manual_seed(0)
        for o, i, taps in ((64, 32, 9), (48, 96, 1), (33, 5, 1), (10, 70, 4)):
            yield PackWeight(torch.randn(o, i, taps, 1, generator=g)).reference(), i, o, taps

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: unpack, transpose, pack."""
        names = ("out_channels", "in_channels", "taps")
        rows, channels, taps = (op.reshape(op.integer(name), 1) for name in names)
        words = op.reshape(onnx_bits.from_panels(op, self.w_bits, rows), rows, taps, -1)
        bits = op.front(onnx_bits.unpack(op, words, onnx_bits.BITS, "uint8"), channels, 2)  # [O, T, I]
        transposed = onnx_bits.pack(op, op.cast(op("Transpose", bits, perm=[2, 1, 0]), "bool"))
        return onnx_bits.to_panels(op, op("Flatten", transposed, axis=1))
