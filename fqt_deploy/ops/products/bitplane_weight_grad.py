"""``fqt::bitplane_weight_grad``: weight-gradient product of input signs and gradient bit-planes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib import onnx_bits
from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_bits import BITS, codes_of_planes, unpack
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.lib.packed_words import (
    PANEL,
    WORD,
    from_panels,
    pack_last_axis,
    panel_count,
    popcount,
    to_panels,
    unpack_last_axis,
)
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


def onnx_taps(op: Body) -> str:
    """Number of taps of attribute ``kernel``, [1] int64."""
    return op("ReduceProd", op.integers("kernel"), op.constant([0], "int64"))


@define(kind=Kind.PRODUCT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class BitplaneWeightGrad(FqtOp):
    """Sum of code times input sign over all positions where the tap is inside the image (algorithm, section 3).

    Attributes:
        planes: [W, B, K] int32: word w, bit k: bit-plane p of the code of position 32 w + k, for each kept channel.
        positions: [ceil((T * I + T) / 16), W, 16] int32, see ``pack_positions``.
        in_channels: I.
        kernel: KH, KW, with T = KH * KW.

    Returns:
        [K, I, KH, KW] int32, laid out like the weight.
    """

    planes: Operand
    positions: Operand
    in_channels: int
    kernel: list[int]

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        words, bits, kept = self.planes.shape
        taps = self.kernel[0] * self.kernel[1]
        codes = unpack_last_axis(self.planes.permute(1, 2, 0), words * 32)
        codes = (codes << torch.arange(bits).view(-1, 1, 1)).sum(0).double()
        rows = unpack_last_axis(from_panels(self.positions, taps * (self.in_channels + 1)), words * 32).double()
        values = rows[: taps * self.in_channels].view(taps, self.in_channels, -1)
        masks = rows[taps * self.in_channels :].view(taps, 1, -1)
        signs = (2 * values - masks).flatten(0, 1)
        product = (codes @ signs.t()).view(kept, *self.kernel, self.in_channels)
        return product.permute(0, 3, 1, 2).to(torch.int32, memory_format=torch.contiguous_format)

    def fake(self) -> Tensor:
        """Shape rule of ``reference``."""
        if tuple(self.positions.shape) != (
            panel_count(self.kernel[0] * self.kernel[1] * (self.in_channels + 1)),
            self.planes.shape[0],
            PANEL,
        ):
            raise ValueError(
                f"planes {tuple(self.planes.shape)} and positions {tuple(self.positions.shape)} do not match"
            )
        return self.planes.new_empty((self.planes.shape[2], self.in_channels, *self.kernel))

    def compute(self) -> te.Tensor:
        """The loop nest: the shared ones of every row, masks too; a sign sum is twice its count minus the mask's."""
        words, bits, kept = (int(d) for d in self.planes.shape)
        taps = self.kernel[0] * self.kernel[1]
        rows = taps * (self.in_channels + 1)
        word, plane = te.reduce_axis((0, words), "word"), te.reduce_axis((0, bits), "plane")
        counts = te.compute(
            (kept, rows),
            lambda c, r: te.sum(
                popcount(self.planes[word, plane, c] & self.positions[r // PANEL, word, r % PANEL]) << plane,
                axis=[word, plane],
            ),
            name="bitplane_weight_grad_counts",
        )

        def signed(c: Any, i: Any, kh: Any, kw: Any) -> Any:
            tap = kh * self.kernel[1] + kw
            return 2 * counts[c, tap * self.in_channels + i] - counts[c, taps * self.in_channels + tap]

        return te.compute((kept, self.in_channels, *self.kernel), signed, name="bitplane_weight_grad")

    def cost(self) -> Cost:
        """The cost: two bit operations a multiply-accumulate of one plane."""
        words, bits, kept = self.planes.shape
        weights = kept * self.in_channels * self.kernel[0] * self.kernel[1]
        work = 2 * 32 * words * bits * weights
        return Cost(bit_ops=work, bytes_moved=tensor_bytes(self.planes, self.positions) + 4 * weights)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: full and partial panels, one word, one channel, two tiles of channels."""
        g = torch.Generator().manual_seed(0)
        cases = (
            (8, 4, 16, 32, [3, 3]), (5, 2, 7, 33, [4, 1]), (1, 1, 1, 5, [1, 1]), (20, 8, 24, 16, [1, 1]),
            (19, 4, 32, 48, [3, 3]), (9, 3, 32, 32, [3, 3]),
        )  # fmt: skip
        for words, bits, kept, channels, kernel in cases:
            taps = kernel[0] * kernel[1]
            planes = pack_last_axis(torch.randint(0, 2, (words, bits, kept, 32), generator=g) > 0)[..., 0].contiguous()
            values = torch.randint(0, 2, (taps, channels, words * 32), generator=g)
            masks = torch.randint(0, 2, (taps, 1, words * 32), generator=g)
            rows = torch.cat([(values * masks).flatten(0, 1), masks[:, 0]])
            yield planes, to_panels(pack_last_axis(rows > 0)), channels, kernel

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: one integer matrix product for all rows, masks included."""
        taps, kernel = onnx_taps(op), op.integers("kernel")
        channels = op.reshape(op.integer("in_channels"), 1)
        values = op("Mul", taps, channels)
        bits = unpack(op, op("Transpose", self.planes, perm=[0, 2, 1]), BITS, "float32")  # [W, K, 32 B]
        planes_last = op.reshape(bits, 0, 0, -1, WORD)  # [W, K, B, 32]
        codes = op.cast(codes_of_planes(op, planes_last, -2), "uint8")  # [W, K, 32]
        by_position = op.reshape(op("Transpose", codes, perm=[0, 2, 1]), -1, op.extent(codes, 1))  # [32 W, K]
        rows = unpack(op, onnx_bits.from_panels(op, self.positions, op("Add", values, taps)), BITS, "uint8")
        counts = op("Transpose", op("MatMulInteger", rows, by_position), perm=[1, 0])  # [K, rows]
        product = op.reshape(op.front(counts, values, 1), 0, taps, channels)
        masks = op.unsqueeze(op.back(counts, values, 1), 2)
        signed = op("Sub", op("Mul", product, op.constant(2, "int32")), masks)  # [K, T, I]
        return op.reshape(op("Transpose", signed, perm=[0, 2, 1]), op("Shape", self.planes, start=2), channels, kernel)
