"""``fqt::attention_backward``: the gradients of attention, whose weights are computed again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te

from fqt_deploy.ops.layers.attention import Attention
from fqt_deploy.ops.lib.attention_scores import (
    check_shapes,
    expand_heads,
    onnx_heads,
    onnx_scores,
    onnx_sum_heads,
    samples_lead,
    score_stage,
    scores,
    sum_heads,
)
from fqt_deploy.ops.lib.exponential import exponential
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

    With ``p = exp(score - logsumexp)``: ``gv = p^T gradient`` and, of ``ds = p (gradient v^T - gradient . output)``,
    ``gq = scale ds k`` and ``gk = scale ds^T q``.

    Attributes:
        gradient: [B, N, H, E] float32, with respect to the output.
        q, k, v, mask, scale, causal: as those of ``attention``.
        output, logsumexp: what it gave.

    Returns:
        gq, gk, gv: float32, of the shapes of ``q``, ``k`` and ``v``.
    """

    gradient: Operand
    q: Operand
    k: Operand
    v: Operand
    mask: OptionalOperand
    output: Operand
    logsumexp: Operand
    scale: float
    causal: bool

    tolerance = 1e-4

    def reference(self) -> tuple[Tensor, Tensor, Tensor]:
        """The result in plain PyTorch."""
        heads, groups = self.q.shape[2], self.k.shape[2]
        found = scores(self.q, self.k, self.mask, self.scale, self.causal)
        weights = (found - self.logsumexp.unsqueeze(3)).exp()
        gradient = self.gradient.transpose(1, 2)
        centre = (gradient * self.output.transpose(1, 2)).sum(3, keepdim=True)
        slope = weights * (gradient @ expand_heads(self.v, heads).transpose(2, 3) - centre) * self.scale
        gq = (slope @ expand_heads(self.k, heads)).transpose(1, 2).contiguous()
        gk = sum_heads(slope.transpose(2, 3) @ self.q.transpose(1, 2), groups)
        return gq, gk, sum_heads(weights.transpose(2, 3) @ gradient, groups)

    def fake(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shape rule: the shapes of ``q``, ``k`` and ``v``."""
        check_shapes(self.q, self.k, self.v, self.mask)
        b, n, h, _ = self.q.shape
        expected = (b, n, h, self.v.shape[3])
        if self.gradient.shape != expected or self.output.shape != expected or self.logsumexp.shape != (b, h, n):
            raise ValueError(
                f"gradient {tuple(self.gradient.shape)}, output {tuple(self.output.shape)} and logsumexp "
                f"{tuple(self.logsumexp.shape)} are not those of an output {tuple(expected)}"
            )
        return self.q.new_empty(self.q.shape), self.k.new_empty(self.k.shape), self.v.new_empty(self.v.shape)

    def compute(self) -> tuple[te.Tensor, te.Tensor, te.Tensor]:
        """Weights and their slope, then a product for each result."""
        found = score_stage(self.q, self.k, self.mask, self.scale, self.causal, "attention_backward")
        b, h, n, m = (int(d) for d in found.shape)
        groups, depth, width = int(self.k.shape[2]), int(self.q.shape[3]), int(self.v.shape[3])
        share = h // groups
        weights = te.compute(
            (b, h, n, m), lambda *i: exponential(found[i] - self.logsumexp[i[:3]]), name="attention_backward_weights"
        )
        e = te.reduce_axis((0, width), "e")
        centre = te.compute(
            (b, h, n),
            lambda s, head, row: te.sum(self.gradient[s, row, head, e] * self.output[s, row, head, e], axis=e),
            name="attention_backward_centre",
        )
        towards = te.compute(
            (b, h, n, m),
            lambda s, head, row, col: te.sum(
                self.gradient[s, row, head, e] * self.v[s, col, head // share, e], axis=e
            ),
            name="attention_backward_towards",
        )  # fmt: skip
        slope = te.compute(
            (b, h, n, m),
            lambda *i: weights[i] * (towards[i] - centre[i[:3]]) * self.scale,
            name="attention_backward_slope",
        )
        j, row, head = te.reduce_axis((0, m), "j"), te.reduce_axis((0, n), "row"), te.reduce_axis((0, share), "head")
        gq = te.compute(
            (b, n, h, depth),
            lambda s, i, a, d: te.sum(slope[s, a, i, j] * self.k[s, j, a // share, d], axis=j),
            name="attention_backward_gq",
        )

        def over_queries(left: te.Tensor, right: Any, extent: int, name: str) -> te.Tensor:
            return te.compute(
                (b, m, groups, extent),
                lambda s, i, g, d: te.sum(
                    left[s, g * share + head, row, i] * right[s, row, g * share + head, d], axis=[head, row]
                ),
                name=name,
            )

        gk = over_queries(slope, self.q, depth, "attention_backward_gk")
        return gq, gk, over_queries(weights, self.gradient, width, "attention_backward_gv")

    def cost(self) -> Cost:
        """The cost: five products of N times M numbers, of which a causal mask leaves half."""
        flops = 2 * self.q.shape[0] * self.q.shape[1] * self.q.shape[2] * self.k.shape[1]
        flops *= 3 * self.q.shape[3] + 2 * self.v.shape[3]
        moved = tensor_bytes(self.gradient, self.q, self.k, self.v, self.output, self.logsumexp, *self.fake())
        return Cost(flops=flops // 2 if self.causal else flops, bytes_moved=moved)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """What ``attention`` gives of its samples, and a random gradient."""
        r = torch.Generator().manual_seed(1)
        for q, k, v, mask, scale, causal in Attention.sample_inputs():
            output, logsumexp = Attention(q, k, v, mask, scale, causal).reference()
            yield torch.randn(output.shape, generator=r), q, k, v, mask, output, logsumexp, scale, causal

    def onnx_body(self, op: Body) -> tuple[str, str, str]:
        """Writes five matrix products, and returns the names of the gradients."""
        found = onnx_scores(op, self.q, self.k, self.mask)
        weights = op("Exp", op("Sub", found, op.unsqueeze(self.logsumexp, 3)))
        gradient = op("Transpose", self.gradient, perm=[0, 2, 1, 3])
        centre = op.sum(op("Mul", gradient, op("Transpose", self.output, perm=[0, 2, 1, 3])), 3, keepdims=1)
        values = op("Transpose", onnx_heads(op, self.v, self.q), perm=[0, 1, 3, 2])
        slope = op("Mul", weights, op("Sub", op("MatMul", gradient, values), centre))
        slope = op("Mul", slope, op.float("scale"))
        gq = op("Transpose", op("MatMul", slope, onnx_heads(op, self.k, self.q)), perm=[0, 2, 1, 3])
        queries = op("Transpose", self.q, perm=[0, 2, 1, 3])
        gk = op("MatMul", op("Transpose", slope, perm=[0, 1, 3, 2]), queries)
        gv = op("MatMul", op("Transpose", weights, perm=[0, 1, 3, 2]), gradient)
        return gq, onnx_sum_heads(op, gk, self.k), onnx_sum_heads(op, gv, self.v)

    def onnx_attributes(self) -> Attributes:
        """Returns the scale, and whether the attention is causal, as ONNX attributes."""
        return {"scale": self.scale, "causal": int(self.causal)}

    def onnx_neutral(self) -> dict[str, Tensor]:
        """A mask that adds nothing."""
        return {"mask": torch.zeros(1, 1, 1, 1)}
