"""``fqt::attention_backward``: the gradients of attention, whose weights are computed again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.layers.attention import Attention
from fqt_deploy.ops.lib.attention_scores import (
    dropout_attributes,
    expand_heads,
    onnx_heads,
    onnx_sum_heads,
    samples_lead,
    sum_heads,
)
from fqt_deploy.ops.lib.attention_slopes import check_saved, onnx_slopes, slope_stages, slopes
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Attributes, Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, OptionalOperand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, Layout, Nan, zero_with_any


@define(
    kind=Kind.PRODUCT,
    batch=samples_lead,
    zero=zero_with_any("gradient"),
    sign=ANY_SIGN,
    nan=Nan.UNKNOWN,
    layout=Layout.OPAQUE,
)
class AttentionBackward(FqtOp):
    """The gradients of ``attention`` with respect to queries, keys and values.

    With ``p = exp(score - logsumexp)`` and what dropout multiplies it by, ``m``: ``gv = (m p)^T gradient`` and, of
    ``t = m gradient v^T`` and ``ds = p (t - mean of t by p)``, ``gq = scale ds k`` and ``gk = scale ds^T q``.

    Attributes:
        gradient: [B, N, H, E] float32, with respect to the output.
        q, k, v, mask, draws, scale, causal, dropout: as those of ``attention``.
        logsumexp: what it gave beside the output, which is not needed.

    Returns:
        gq, gk, gv: float32, of the shapes of ``q``, ``k`` and ``v``.
    """

    gradient: Operand
    q: Operand
    k: Operand
    v: Operand
    mask: OptionalOperand
    draws: OptionalOperand
    logsumexp: Operand
    scale: float
    causal: bool
    dropout: float

    tolerance = 1e-4

    def reference(self) -> tuple[Tensor, Tensor, Tensor]:
        """The result in plain PyTorch."""
        heads, groups = self.q.shape[2], self.k.shape[2]
        weights, slope = slopes(self)
        slope = slope * self.scale
        gq = (slope @ expand_heads(self.k, heads)).transpose(1, 2).contiguous()
        gk = sum_heads(slope.transpose(2, 3) @ self.q.transpose(1, 2), groups)
        return gq, gk, sum_heads(weights.transpose(2, 3) @ self.gradient.transpose(1, 2), groups)

    def fake(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shape rule: the shapes of ``q``, ``k`` and ``v``."""
        check_saved(self)
        return self.q.new_empty(self.q.shape), self.k.new_empty(self.k.shape), self.v.new_empty(self.v.shape)

    def compute(self) -> tuple[te.Tensor, te.Tensor, te.Tensor]:
        """Weights and their slope, then a product for each result."""
        weights, slope = slope_stages(self, "attention_backward")
        b, h, n, m = (int(d) for d in slope.shape)
        groups, depth, width = int(self.k.shape[2]), int(self.q.shape[3]), int(self.v.shape[3])
        share, scale, one = h // groups, tirx.const(self.scale, "float32"), tirx.const(1.0, "float32")
        j, row, head = te.reduce_axis((0, m), "j"), te.reduce_axis((0, n), "row"), te.reduce_axis((0, share), "head")
        gq = te.compute(
            (b, n, h, depth),
            lambda s, i, a, d: te.sum(slope[s, a, i, j] * scale * self.k[s, j, a // share, d], axis=j),
            name="attention_backward_gq",
        )

        def over_queries(left: te.Tensor, factor: Any, right: Any, extent: int, name: str) -> te.Tensor:
            return te.compute(
                (b, m, groups, extent),
                lambda s, i, g, d: te.sum(
                    left[s, g * share + head, row, i] * factor * right[s, row, g * share + head, d], axis=[head, row]
                ),
                name=name,
            )

        gk = over_queries(slope, scale, self.q, depth, "attention_backward_gk")
        return gq, gk, over_queries(weights, one, self.gradient, width, "attention_backward_gv")

    def cost(self) -> Cost:
        """The cost: five products of N times M numbers, of which a causal mask leaves half."""
        flops = 2 * self.q.shape[0] * self.q.shape[1] * self.q.shape[2] * self.k.shape[1]
        flops *= 3 * self.q.shape[3] + 2 * self.v.shape[3]
        moved = tensor_bytes(self.gradient, self.q, self.k, self.v, self.logsumexp, *self.fake())
        return Cost(flops=flops // 2 if self.causal else flops, bytes_moved=moved)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """What ``attention`` gives of its samples, and a random gradient."""
        r = torch.Generator().manual_seed(1)
        for sample in Attention.sample_inputs():
            output, logsumexp = Attention(*sample).reference()
            *operands, scale, causal, dropout = sample
            yield torch.randn(output.shape, generator=r), *operands, logsumexp, scale, causal, dropout

    def onnx_body(self, op: Body) -> tuple[str, str, str]:
        """Writes five matrix products, and returns the names of the gradients."""
        weights, slope = onnx_slopes(op, self)
        slope = op("Mul", slope, op.float("scale"))
        gq = op("Transpose", op("MatMul", slope, onnx_heads(op, self.k, self.q)), perm=[0, 2, 1, 3])
        queries, gradient = (op("Transpose", x, perm=[0, 2, 1, 3]) for x in (self.q, self.gradient))
        gk = op("MatMul", op("Transpose", slope, perm=[0, 1, 3, 2]), queries)
        gv = op("MatMul", op("Transpose", weights, perm=[0, 1, 3, 2]), gradient)
        return gq, onnx_sum_heads(op, gk, self.k), onnx_sum_heads(op, gv, self.v)

    def onnx_attributes(self) -> Attributes:
        """Returns the scale, whether the attention is causal, and what dropout does, as ONNX attributes."""
        return {"scale": self.scale, "causal": int(self.causal), **dropout_attributes(self.dropout)}

    def onnx_neutral(self) -> dict[str, Tensor]:
        """A mask that adds nothing, and numbers that nothing is drawn from."""
        return {"mask": torch.zeros(1, 1, 1, 1), "draws": torch.zeros(1, 2)}
