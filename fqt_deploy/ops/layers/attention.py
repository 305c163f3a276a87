"""``fqt::attention``: softmax of scaled and masked scores times values, of which the scores need not be kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.attention_scores import (
    HIDDEN,
    check_shapes,
    drop,
    dropout_attributes,
    expand_heads,
    kept_weights,
    onnx_drop,
    onnx_heads,
    onnx_scores,
    samples_lead,
    score_stage,
    scores,
)
from fqt_deploy.ops.lib.exponential import exponential
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Attributes, Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, OptionalOperand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, Layout, Nan, zero_with_any


@define(
    kind=Kind.PRODUCT, batch=samples_lead, zero=zero_with_any("v"), sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE
)
class Attention(FqtOp):
    """For each query, the mean of the values, weighted by ``exp(scale * query . key + mask)``.

    Each of the G heads of keys and values serves H / G heads of queries, one after another. A query that sees no key,
    because all its scores are minus infinity, gets zero.

    Attributes:
        q: [B, N, H, D] float32.
        k: [B, M, G, D] float32.
        v: [B, M, G, E] float32.
        mask: [B or 1, H or 1, N or 1, M] float32, added to the scores.
        draws: [B, 2] float32 in [0, 1), what dropout draws the weights from that it keeps; None without it.
        scale: what products of queries and keys are multiplied by.
        causal: whether query n sees keys 0 to n only.
        dropout: probability that a weight is dropped, below 1; the others are divided by what is left of 1.

    Returns:
        output: [B, N, H, E] float32. logsumexp: [B, H, N] float32 of the scores, 0 for a query that sees no key; what
        backward needs to compute the weights again.
    """

    q: Operand
    k: Operand
    v: Operand
    mask: OptionalOperand
    draws: OptionalOperand
    scale: float
    causal: bool
    dropout: float

    tolerance = 1e-4

    def reference(self) -> tuple[Tensor, Tensor]:
        """The result in plain PyTorch."""
        found = scores(self.q, self.k, self.mask, self.scale, self.causal)
        total = found.logsumexp(3)
        total = total.masked_fill(total == HIDDEN, 0.0)
        weights = (found - total.unsqueeze(3)).exp()
        weights = weights * kept_weights(self.draws, self.dropout, weights.shape)
        output = weights @ expand_heads(self.v, self.q.shape[2])
        return output.transpose(1, 2).contiguous(), total

    def fake(self) -> tuple[Tensor, Tensor]:
        """Shape rule: [B, N, H, D], [B, M, G, D], [B, M, G, E] -> [B, N, H, E], [B, H, N]."""
        check_shapes(self.q, self.k, self.v, self.mask, self.draws, self.dropout)
        b, n, h, _ = self.q.shape
        return self.q.new_empty((b, n, h, self.v.shape[3])), self.q.new_empty((b, h, n))

    def compute(self) -> tuple[te.Tensor, te.Tensor]:
        """Scores, their maximum, the sum of exponentials, the weighted mean."""
        found = score_stage(self.q, self.k, self.mask, self.scale, self.causal, "attention")
        b, h, n, m = (int(d) for d in found.shape)
        share, depth = h // int(self.k.shape[2]), int(self.v.shape[3])
        j = te.reduce_axis((0, m), "j")
        top = te.compute((b, h, n), lambda *i: te.max(found[(*i, j)], axis=j), name="attention_top")

        def above(*i: Any) -> Any:
            return tirx.Select(top[i] > tirx.const(HIDDEN, "float32"), top[i], tirx.const(0.0, "float32"))

        weights = te.compute(
            (b, h, n, m), lambda *i: exponential(found[i] - above(*i[:3])), name="attention_weights"
        )  # fmt: skip
        total = te.compute((b, h, n), lambda *i: te.sum(weights[(*i, j)], axis=j), name="attention_total")
        zero, one = tirx.const(0.0, "float32"), tirx.const(1.0, "float32")
        logs = te.compute(
            (b, h, n),
            lambda *i: tirx.Select(
                total[i].equal(zero), zero, above(*i) + tirx.log(tirx.Select(total[i].equal(zero), one, total[i]))
            ),
            name="attention_logsumexp",
        )
        kept = drop(weights, self.draws, self.dropout, "attention_kept")
        sums = te.compute(
            (b, n, h, depth),
            lambda s, row, head, e: te.sum(kept[s, head, row, j] * self.v[s, j, head // share, e], axis=j),
            name="attention_sums",
        )
        output = te.compute(
            (b, n, h, depth),
            lambda s, row, head, e: (
                sums[s, row, head, e] / tirx.Select(total[s, head, row].equal(zero), one, total[s, head, row])
            ),
            name="attention_output",
        )
        return output, logs

    def cost(self) -> Cost:
        """The cost: two products of N times M numbers, of which a causal mask leaves half."""
        output, logs = self.fake()
        flops = 2 * self.q.shape[0] * self.q.shape[1] * self.q.shape[2] * self.k.shape[1]
        flops *= self.q.shape[3] + self.v.shape[3]
        return Cost(
            flops=flops // 2 if self.causal else flops,
            bytes_moved=tensor_bytes(self.q, self.k, self.v, output, logs),
        )

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Whole and odd extents, grouped heads, masks, dropout, hidden rows, long rows, large scores."""
        r = torch.Generator().manual_seed(0)

        def operands(b: int, n: int, m: int, h: int, g: int, d: int, e: int) -> tuple[Tensor, Tensor, Tensor]:
            shapes = (b, n, h, d), (b, m, g, d), (b, m, g, e)
            return tuple(torch.randn(*shape, generator=r) for shape in shapes)  # type: ignore[return-value]

        draws = torch.randint(0, 2**24, (3, 2), generator=r) * 2.0**-24
        yield *operands(2, 16, 16, 2, 2, 16, 16), None, None, 0.25, False, 0.0
        yield *operands(2, 19, 37, 4, 2, 8, 5), None, draws[:2], 0.35, False, 0.3
        yield *operands(1, 70, 70, 1, 1, 64, 64), None, None, 0.125, True, 0.0
        yield *operands(3, 5, 9, 2, 1, 3, 20), torch.randn(3, 2, 5, 9, generator=r), draws, 1.0, False, 0.5
        hidden = torch.zeros(2, 1, 1, 33).masked_fill(torch.rand(2, 1, 1, 33, generator=r) < 0.5, HIDDEN)
        hidden[1] = HIDDEN
        yield *operands(2, 7, 33, 2, 2, 16, 16), hidden, None, 0.25, False, 0.0
        yield *operands(2, 5, 5, 3, 3, 4, 4), torch.randn(1, 3, 5, 5, generator=r), None, 0.5, True, 0.0
        yield *operands(1, 1, 1, 1, 1, 1, 1), None, None, 1.0, True, 0.0
        yield *operands(2, 9, 300, 1, 1, 16, 32), None, None, 30.0, False, 0.0
        yield *operands(2, 9, 300, 2, 1, 16, 32), None, draws[:2], 30.0, False, 0.3

    def onnx_body(self, op: Body) -> tuple[str, str]:
        """Two matrix products with a softmax between them, which hidden rows make zero."""
        found = onnx_scores(op, self.q, self.k, self.mask)
        axis = op.constant([3], "int64")
        top = op("ReduceMax", found, axis, keepdims=1)
        zero = op.constant(0.0, "float32")
        above = op("Where", op("Equal", top, op.constant(HIDDEN, "float32")), zero, top)
        weights = op("Exp", op("Sub", found, above))
        total = op.sum(weights, 3, keepdims=1)
        empty = op("Equal", total, zero)
        divisor = op("Where", empty, op.constant(1.0, "float32"), total)
        logs = op("Where", empty, zero, op("Add", above, op("Log", divisor)))
        weights = onnx_drop(op, op("Div", weights, divisor), self.draws, self.q, self.k)
        output = op("MatMul", weights, onnx_heads(op, self.v, self.q))
        return op("Transpose", output, perm=[0, 2, 1, 3]), op("Squeeze", logs, axis)

    def onnx_attributes(self) -> Attributes:
        """Returns the scale, whether the attention is causal, and what dropout does, as ONNX attributes."""
        return {"scale": self.scale, "causal": int(self.causal), **dropout_attributes(self.dropout)}

    def onnx_neutral(self) -> dict[str, Tensor]:
        """A mask that adds nothing, and numbers that nothing is drawn from."""
        return {"mask": torch.zeros(1, 1, 1, 1), "draws": torch.zeros(1, 2)}


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what the gradients are computed from."""
    q, k, v, mask, draws, *ctx.numbers = inputs
    ctx.save_for_backward(q, k, v, mask, draws, output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of the operands; nothing reads the logarithms but this."""
    operands = gradient.contiguous(), *ctx.saved_tensors, *ctx.numbers
    found = torch.ops.fqt.attention_backward(*operands)
    mask = torch.ops.fqt.attention_mask_gradient(*operands) if ctx.needs_input_grad[3] else None
    return (*found, mask, None, None, None, None)


torch.library.register_autograd("fqt::attention", _backward, setup_context=_save)
