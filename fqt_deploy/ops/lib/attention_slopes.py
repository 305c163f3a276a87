"""What the gradients of attention share: the weights, computed again, and the slope of the loss over the scores.

A slope is ``weight * (t - centre)``, with the weighted mean of all ``t`` as the centre. Weights that are computed again
do not add up to 1: the logarithm of their sum is rounded, the more the larger it is. The mean is therefore divided by
the sum of the weights. Where one key has nearly all the weight, its ``t`` and the centre nearly agree, and their
difference would be that error.

Each function takes a call of such an op: an object with the operands and attributes of ``attention_backward``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fqt_deploy.ops.lib.attention_scores import (
    check_shapes,
    drop,
    expand_heads,
    kept_weights,
    onnx_drop,
    onnx_heads,
    onnx_scores,
    score_stage,
    scores,
)
from fqt_deploy.ops.lib.exponential import exponential
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body


def slopes(call: Any) -> tuple[Tensor, Tensor]:
    """The weights that dropout left, and the slope of the scores, [B, H, N, M] each."""
    found = scores(call.q, call.k, call.mask, call.scale, call.causal)
    weights = (found - call.logsumexp.unsqueeze(3)).exp()
    kept = kept_weights(call.draws, call.dropout, weights.shape)
    towards = call.gradient.transpose(1, 2) @ expand_heads(call.v, call.q.shape[2]).transpose(2, 3) * kept
    total = weights.sum(3, keepdim=True)  # of all weights, whatever dropout keeps: it is 1 but for rounding
    centre = (weights * towards).sum(3, keepdim=True) / total.masked_fill(total == 0, 1.0)
    return weights * kept, weights * (towards - centre)


def slope_stages(call: Any, name: str) -> tuple[te.Tensor, te.Tensor]:
    """The loop nests of ``slopes``; their stages are called after ``name``."""
    found = score_stage(call.q, call.k, call.mask, call.scale, call.causal, name)
    b, h, n, m = (int(d) for d in found.shape)
    share = h // int(call.k.shape[2])
    weights = te.compute(
        (b, h, n, m), lambda *i: exponential(found[i] - call.logsumexp[i[:3]]), name=f"{name}_weights"
    )  # fmt: skip
    e, j = te.reduce_axis((0, int(call.v.shape[3])), "e"), te.reduce_axis((0, m), "j")
    towards = te.compute(
        (b, h, n, m),
        lambda s, head, row, col: te.sum(call.gradient[s, row, head, e] * call.v[s, col, head // share, e], axis=e),
        name=f"{name}_towards",
    )
    kept = drop(towards, call.draws, call.dropout, f"{name}_kept_towards")
    total = te.compute((b, h, n), lambda *i: te.sum(weights[(*i, j)], axis=j), name=f"{name}_total")
    sums = te.compute((b, h, n), lambda *i: te.sum(weights[(*i, j)] * kept[(*i, j)], axis=j), name=f"{name}_sums")
    zero, one = tirx.const(0.0, "float32"), tirx.const(1.0, "float32")
    centre = te.compute(
        (b, h, n), lambda *i: sums[i] / tirx.Select(total[i].equal(zero), one, total[i]), name=f"{name}_centre"
    )  # fmt: skip
    slope = te.compute((b, h, n, m), lambda *i: weights[i] * (kept[i] - centre[i[:3]]), name=f"{name}_slope")
    return drop(weights, call.draws, call.dropout, f"{name}_kept_weights"), slope


def onnx_slopes(op: Body, call: Any) -> tuple[str, str]:
    """Writes the nodes of ``slopes`` and returns the names of both."""
    found = onnx_scores(op, call.q, call.k, call.mask)
    weights = op("Exp", op("Sub", found, op.unsqueeze(call.logsumexp, 3)))
    gradient = op("Transpose", call.gradient, perm=[0, 2, 1, 3])
    values = op("Transpose", onnx_heads(op, call.v, call.q), perm=[0, 1, 3, 2])
    towards = onnx_drop(op, op("MatMul", gradient, values), call.draws, call.q, call.k)
    total = op.sum(weights, 3, keepdims=1)
    divisor = op("Where", op("Equal", total, op.constant(0.0, "float32")), op.constant(1.0, "float32"), total)
    centre = op("Div", op.sum(op("Mul", weights, towards), 3, keepdims=1), divisor)
    slope = op("Mul", weights, op("Sub", towards, centre))
    return onnx_drop(op, weights, call.draws, call.q, call.k), slope


def check_saved(call: Any) -> None:
    """Raise ``ValueError`` for operands of a gradient that do not belong together."""
    check_shapes(call.q, call.k, call.v, call.mask, call.draws, call.dropout)
    b, n, h, _ = call.q.shape
    expected = (b, n, h, call.v.shape[3])
    if call.gradient.shape != expected or call.logsumexp.shape != (b, h, n):
        raise ValueError(
            f"gradient {tuple(call.gradient.shape)} and logsumexp {tuple(call.logsumexp.shape)} are not those of an "
            f"output {tuple(expected)}"
        )
