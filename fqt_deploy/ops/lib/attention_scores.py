"""What attention and its gradients share: the scores of queries and keys, as PyTorch, as loop nests and in ONNX."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.core.call import Call
from fqt_deploy.ops.lib.counter_random import (
    drop_threshold,
    element_hash,
    element_hash_compute,
    flat_index,
    uint32,
)
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_bits import element_hash as element_hash_onnx
from fqt_deploy.ops.lib.onnx_bits import shift_right
from fqt_deploy.ops.lib.onnx_body import Attributes, Body
from fqt_deploy.ops.traits import Aligned, AxisOf

HIDDEN = float("-inf")
"""The score of a key that a query does not see."""


_DRAW_BITS = 24
"""Random bits of each number in ``draws``."""


def kept_weights(draws: Tensor | None, dropout: float, extents: torch.Size) -> Tensor | float:
    """What dropout multiplies weights [B, H, N, M] by: ``1 / (1 - dropout)``, or 0 for what is dropped.

    Args:
        draws: [B, 2] float32 in [0, 1), a random stream for each sample; None without dropout.
        dropout: probability that a weight is dropped.
        extents: B, H, N and M.
    """
    if draws is None:
        return 1.0
    keys = (draws * 2.0**_DRAW_BITS).int().t()[..., None, None, None]
    index = torch.arange(extents[1:].numel(), dtype=torch.int64).view(1, *extents[1:])
    kept = (element_hash(index, keys) >> (32 - _DRAW_BITS)) >= drop_threshold(dropout)
    return kept * (1.0 / (1.0 - dropout))


def is_kept(draws: Any, dropout: float, b: Any, place: Any) -> Any:
    """Whether dropout keeps the weight at ``place``, ``(head * N + row) * M + column`` as uint32, of sample ``b``."""
    keys = [(draws[b, i] * tirx.const(2.0**_DRAW_BITS, "float32")).astype("int32") for i in range(2)]
    bits = element_hash_compute(place, keys) >> uint32(32 - _DRAW_BITS)
    return bits >= uint32(drop_threshold(dropout))


def drop(weights: te.Tensor, draws: Any, dropout: float, name: str) -> te.Tensor:
    """The loop nest of weights times ``kept_weights``; the weights themselves without dropout."""
    if draws is None:
        return weights
    _, heads, rows, columns = (int(d) for d in weights.shape)
    factor, zero = tirx.const(1.0 / (1.0 - dropout), "float32"), tirx.const(0.0, "float32")

    def kept(b: Any, head: Any, row: Any, column: Any) -> Any:
        place = flat_index((head, row, column), (heads, rows, columns))
        return tirx.Select(is_kept(draws, dropout, b, place), weights[b, head, row, column] * factor, zero)

    return te.compute(weights.shape, kept, name=name)


def onnx_drop(op: Body, weights: str, draws: str, q: str, k: str) -> str:
    """Weights times ``kept_weights``, by the attributes ``threshold`` and ``factor``: [B, H, N, M]."""
    threshold = op.integer("threshold")
    everything = op("Equal", threshold, op.constant(0, "int64"))
    one = op.constant([1], "int64")
    true = [op.extent(q, 2), op.extent(q, 1), op.extent(k, 1)]
    h, n, m = (op("Where", everything, one, extent) for extent in true)  # without dropout nothing is drawn
    count = op("Mul", op("Mul", h, n), m)
    index = op("Reshape", op.cast(op.range(count), "uint32"), op.shape(1, h, n, m))
    bits = op.cast(op("Mul", draws, op.constant(2.0**_DRAW_BITS, "float32")), "int32")
    keys = op.reshape(op("Transpose", bits, perm=[1, 0]), 2, -1, 1, 1, 1)
    random = shift_right(op, element_hash_onnx(op, index, keys), 32 - _DRAW_BITS)
    kept = op("GreaterOrEqual", random, op.cast(threshold, "uint32"))
    return op("Mul", weights, op("Mul", op.cast(kept, "float32"), op.float("factor")))


def dropout_attributes(dropout: float) -> Attributes:
    """The attributes that ``onnx_drop`` reads."""
    return {"threshold": drop_threshold(dropout), "factor": 1.0 / (1.0 - dropout)}


def expand_heads(x: Tensor, heads: int) -> Tensor:
    """Keys or values [B, M, G, D] for each of ``heads`` heads of queries: [B, heads, M, D]."""
    return x.repeat_interleave(heads // x.shape[2], 2).transpose(1, 2)


def sum_heads(x: Tensor, groups: int) -> Tensor:
    """Gradients [B, heads, M, D] of what ``groups`` heads gave: [B, M, groups, D]."""
    b, _, m, d = x.shape
    return x.view(b, groups, -1, m, d).sum(2).transpose(1, 2).contiguous()


def scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    """Scaled and masked scores [B, H, N, M] of queries [B, N, H, D] and keys [B, M, G, D]."""
    found = q.transpose(1, 2) @ expand_heads(k, q.shape[2]).transpose(2, 3) * scale
    if mask is not None:
        found = found + mask
    if causal:
        seen = torch.ones(found.shape[2:], dtype=torch.bool, device=q.device).tril()
        found = found.masked_fill(~seen, HIDDEN)
    return found


def score_stage(q: Any, k: Any, mask: Any, scale: float, causal: bool, name: str) -> te.Tensor:
    """The loop nests of ``scores``; the last stage is called ``<name>_scores``."""
    (b, n, h, depth), (m, groups) = (int(d) for d in q.shape), (int(d) for d in k.shape[1:3])
    term = te.reduce_axis((0, depth), "d")
    products = te.compute(
        (b, h, n, m),
        lambda s, head, row, col: te.sum(
            q[s, row, head, term] * k[s, col, head // (h // groups), term], axis=term
        ),
        name=f"{name}_products",
    )  # fmt: skip

    def masked(s: Any, head: Any, row: Any, col: Any) -> Any:
        score = products[s, head, row, col] * tirx.const(scale, "float32")
        if mask is not None:
            at = [0 if int(e) == 1 else i for e, i in zip(mask.shape[:3], (s, head, row), strict=True)]
            score = score + mask[(*at, col)]
        return tirx.Select(col <= row, score, tirx.const(HIDDEN, "float32")) if causal else score

    return te.compute((b, h, n, m), masked, name=f"{name}_scores")


def onnx_heads(op: Body, x: str, q: str) -> str:
    """Keys or values [B, M, G, D] for each head of ``q`` [B, N, H, D]: [B, H, M, D]."""
    b, m, g, d = (op.extent(x, axis) for axis in (0, 1, 2, 3))
    h = op.extent(q, 2)
    share = op("Div", h, g)
    repeated = op("Expand", op.unsqueeze(x, 3), op.shape(b, m, g, share, d))
    return op("Transpose", op("Reshape", repeated, op.shape(b, m, h, d)), perm=[0, 2, 1, 3])


def onnx_sum_heads(op: Body, x: str, like: str) -> str:
    """Gradients [B, H, M, D] summed over the heads that share one of ``like`` [B, M, G, D]: [B, M, G, D]."""
    b, m, g, d = (op.extent(like, axis) for axis in (0, 1, 2, 3))
    grouped = op("Reshape", x, op.shape(b, g, -1, m, d))
    return op("Transpose", op.sum(grouped, 2), perm=[0, 2, 1, 3])


def onnx_scores(op: Body, q: str, k: str, mask: str) -> str:
    """The scores [B, H, N, M], by the function's attributes ``scale`` and ``causal``."""
    keys = op("Transpose", onnx_heads(op, k, q), perm=[0, 1, 3, 2])
    products = op("MatMul", op("Transpose", q, perm=[0, 2, 1, 3]), keys)
    found = op("Add", op("Mul", products, op.float("scale")), mask)
    row = op.unsqueeze(op.range(op.extent(q, 1)), 1)
    column = op.unsqueeze(op.range(op.extent(k, 1)), 0)
    everything = op("Equal", op.integer("causal"), op.constant(0, "int64"))
    seen = op("Or", op("LessOrEqual", column, row), everything)
    return op("Where", seen, found, op.constant(HIDDEN, "float32"))


def check_shapes(q: Any, k: Any, v: Any, mask: Any, draws: Any, dropout: float) -> None:
    """Raise ``ValueError`` for operands that do not belong together."""
    shapes = f"queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)}"
    if any(x.dim() != 4 for x in (q, k, v)) or q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3]:
        raise ValueError(f"{shapes} do not match: they are [B, N, H, D], [B, M, G, D] and [B, M, G, E]")
    if q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
        raise ValueError(f"{shapes} do not match in depth or heads")
    if (draws is None) != (dropout == 0) or not 0 <= dropout < 1:
        raise ValueError(f"a dropout of {dropout} needs numbers to draw from just where it is above 0; it is below 1")
    if draws is not None and tuple(draws.shape) != (q.shape[0], 2):
        raise ValueError(f"the numbers that dropout draws from are {tuple(draws.shape)}, not {(q.shape[0], 2)}")
    if mask is None:
        return
    full = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    fits = mask.dim() == 4 and mask.shape[3] == full[3]
    if not fits or any(m not in (1, f) for m, f in zip(mask.shape[:3], full[:3], strict=True)):
        raise ValueError(f"the mask {tuple(mask.shape)} does not broadcast to {full}; the last extent is the keys'")


def samples_lead(call: Call, axis_of: AxisOf, _batch: int) -> Aligned | None:
    """Samples lie in front of all tensors, but for a mask that is the same for all."""
    values = call.values()
    count = _samples(values["q"])
    operands = [a for name, a in values.items() if isinstance(a, fx.Node) and (name != "mask" or _samples(a) == count)]
    places = {place for a in operands if (place := axis_of(a)) is not None}
    if len(places) != 1 or (where := places.pop()).axis != 0:
        return None
    return Aligned(where, dict.fromkeys(operands, where), results=3)


def _samples(node: fx.Node) -> int:
    return int(node.meta["val"].shape[0])
