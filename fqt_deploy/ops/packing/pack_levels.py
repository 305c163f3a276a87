"""``fqt::pack_levels``: activations of several bits, as bit-planes over the last axis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib import levels
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_bits import pack, planes_of_codes
from fqt_deploy.ops.lib.onnx_body import Attributes, Body
from fqt_deploy.ops.lib.packed_words import WORD, bit_of, pack_last_axis, packed, values_to_pack, word_count
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.quantization.activation_levels import EDGES, GRIDS
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples


@define(kind=Kind.ROOT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class PackLevels(FqtOp):
    """Plane p holds bit p of the code of every level, see ``activation_levels``.

    Attributes:
        x: [..., C] float32.
        spacing: distance of neighbouring values.
        bits: width of a code, B.
        signed: the kind of the grid.

    Returns:
        [..., B, ceil(C / 32)] int32.
    """

    x: Operand
    spacing: float
    bits: int
    signed: bool

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        codes = levels.codes_of(self.x, self.spacing, self.bits, self.signed).long()
        return torch.stack([pack_last_axis((codes >> plane) & 1 > 0) for plane in range(self.bits)], -2)

    def fake(self) -> Tensor:
        """Shape rule: [..., C] -> [..., B, ceil(C / 32)]."""
        if self.x.ndim < 1:
            raise ValueError("a scalar has no axis to pack")
        *leading, channels = self.x.shape
        return self.x.new_empty((*leading, self.bits, word_count(channels)), dtype=torch.int32)

    def compute(self) -> te.Tensor:
        """The loop nest: codes in one pass, bits collected in another."""
        *leading, channels = (int(d) for d in self.x.shape)

        def code_of(*index: Any) -> Any:
            code = levels.codes_compute(self.x[index], self.spacing, self.bits, self.signed)
            return code.astype("int32").astype("uint8")

        codes = values_to_pack((*leading, channels), code_of, "pack_levels_codes")

        def bit(*index: Any) -> Any:
            *outer, plane, word, k = index
            c = word * WORD + k
            code = codes[(*outer, c)].astype("int32")
            if int(codes.shape[-1]) % WORD:
                code = tirx.if_then_else(c < channels, code, 0)
            return bit_of(code, plane)

        return packed((*leading, self.bits, word_count(channels)), bit, name="pack_levels")

    def cost(self) -> Cost:
        """The cost: six operations an element."""
        return Cost(flops=6 * self.x.numel(), bytes_moved=tensor_bytes(self.x) + self.bits * self.x.numel() // 8)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: whole and partial words, the edges of cells, on grids of both kinds."""
        g = torch.Generator().manual_seed(0)
        for bits, signed in GRIDS:
            yield torch.randn(3, 4, 5, 64, generator=g), 0.37, bits, signed
        yield torch.randn(2, 3, 3, 33, generator=g), 0.37, 3, True
        yield torch.randn(2, 3, 72, generator=g), 0.37, 4, True
        yield torch.randn(3, 5, 16, generator=g), 0.37, 2, False
        yield torch.randn(7, 5, generator=g), 0.37, 4, False
        yield torch.tensor([EDGES]), 0.5, 2, True
        yield torch.tensor([EDGES]), 0.5, 2, False
        yield torch.tensor([[float("nan"), 1.0]]), 0.5, 2, True

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: codes, planes, words."""
        codes = op.cast(levels.codes_onnx(op, self.x), "uint8")
        return pack(op, planes_of_codes(op, codes, op.integer("bits")))

    def onnx_attributes(self) -> Attributes:
        """The attributes in ONNX: the grid."""
        return {"bits": self.bits, **levels.onnx_attributes(self.spacing, self.bits, self.signed)}
