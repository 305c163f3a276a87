"""Attention as one op with a backward of its own, formed before a model is differentiated.

Before::

    %s = aten.matmul(%q, aten.transpose(%k, -2, -1));  %p = aten.softmax(aten.add(aten.mul(%s, 0.125), %mask), -1)
    %y = aten.matmul(%p, %v)                                    # or aten.scaled_dot_product_attention(%q, %k, %v, ...)

After::

    %o, %lse = fqt.attention(permute(%q), permute(%k), permute(%v), %mask, 0.125, False)       # [B, N, H, D] each
    %y = permute(%o)

The op has heads behind positions, as a linear layer gives them: the permutations that models write cancel with these.
What is left in plain ops: attention with dropout, attention whose weights something else reads, and scores to which
something is added that has a gradient, such as a learned bias.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

import fqt_deploy.ops.registry  # noqa: F401 - defines the op
from fqt_deploy.core.call import arguments_of, bind

aten = torch.ops.aten
fqt = torch.ops.fqt

HIDING = -1e4
"""A number that takes the place of scores, or less, hides keys: nothing is left of them in float32."""
_PRODUCTS = (aten.matmul.default, aten.bmm.default)


@dataclass(frozen=True)
class _Mask:
    """What is added to the scores.

    Attributes:
        node: numbers, or booleans.
        hides: the boolean that stands for what is not seen; None for numbers.
    """

    node: fx.Node
    hides: bool | None = None


@dataclass(frozen=True)
class _Scores:
    """The operands of scores.

    Attributes:
        q: [B, H, N, D] or [B, N, D].
        k: [B, H, M, D] or [B, M, D]; across: [B, H, D, M] or [B, D, M].
        across: whether keys are columns.
        scale: what the products are multiplied by.
        masks: what is added to them, with the last first.
        causal: whether later keys are hidden.
    """

    q: fx.Node
    k: fx.Node
    across: bool
    scale: float = 1.0
    masks: tuple[_Mask, ...] = ()
    causal: bool = False


def form_attention(program: ExportedProgram) -> None:
    """Rewrite each attention of a traced forward pass, in place, that the op can compute."""
    graph = program.graph_module.graph
    parameters = {n for n in graph.nodes if n.name in program.graph_signature.inputs_to_parameters}
    trained = _depend_on(graph, parameters)
    for node in list(graph.nodes):
        found = _attention(node)
        if found is not None and _fits(*found, trained):
            _rewrite(graph, node, *found)
    program.graph_module.recompile()


def _attention(node: fx.Node) -> tuple[_Scores, fx.Node] | None:
    """The scores and the values, heads first, of an attention whose result is ``node``."""
    if node.op != "call_function":
        return None
    if node.target is aten.scaled_dot_product_attention.default:
        call = arguments_of(node)
        if call["dropout_p"]:
            return None
        scale = 1 / math.sqrt(_shape(call["query"])[-1]) if call["scale"] is None else call["scale"]
        mask = call["attn_mask"]
        masks = () if mask is None else (_Mask(mask, None if mask.meta["val"].dtype != torch.bool else False),)
        found = _Scores(call["query"], call["key"], False, float(scale), masks, bool(call["is_causal"]))
        return found, call["value"]
    if node.target not in _PRODUCTS:
        return None
    weights: Any = node.args[0]
    values: Any = node.args[1]
    while (weights := _sole(weights)) is not None and weights.target in (aten.dropout.default, aten.clone.default):
        call = arguments_of(weights)
        if call.get("p") and call.get("train"):
            return None
        weights = weights.args[0]
    if weights is None or weights.target is not aten.softmax.int or _axis(weights) != len(_shape(weights)) - 1:
        return None
    scores = _scores_of(weights.args[0])
    return None if scores is None or not isinstance(values, fx.Node) else (scores, values)


def _scores_of(node: Any) -> _Scores | None:
    """What scores are computed from, if they are products that are scaled, then masked."""
    node = _sole(node)
    if node is None:
        return None
    if node.target in _PRODUCTS:
        return _Scores(node.args[0], node.args[1], True)
    call = bind(node.target, node.args, node.kwargs) if isinstance(node.target, torch._ops.OpOverload) else {}
    if node.target in (aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar):
        inner, factor = _scores_of(call["self"]), call["other"]
        if inner is None or inner.masks or not isinstance(factor, (int, float)) or not factor:
            return None
        by = float(factor) if "mul" in node.target.name() else 1 / float(factor)
        return _Scores(inner.q, inner.k, True, inner.scale * by)
    if node.target in (aten.add.Tensor, aten.add_.Tensor) and call["alpha"] == 1:
        for scores, mask in ((call["self"], call["other"]), (call["other"], call["self"])):
            inner = _scores_of(scores) if isinstance(mask, fx.Node) else None
            if inner is not None:
                return _Scores(inner.q, inner.k, True, inner.scale, (_Mask(mask), *inner.masks))
        return None
    return _hidden(node, call)


def _hidden(node: fx.Node, call: dict[str, Any]) -> _Scores | None:
    """Scores of which a boolean hides some."""
    if node.target in (aten.masked_fill.Scalar, aten.masked_fill_.Scalar):
        scores, mask, number, hides = call["self"], call["mask"], call["value"], True
    elif node.target is aten.where.ScalarOther:
        scores, mask, number, hides = call["self"], call["condition"], call["other"], False
    elif node.target is aten.where.self:
        scores, mask, number, hides = call["self"], call["condition"], _constant(call["other"]), False
    else:
        return None
    inner = _scores_of(scores)
    if inner is None or not isinstance(number, (int, float)) or number > HIDING:
        return None
    return _Scores(inner.q, inner.k, True, inner.scale, (_Mask(mask, hides), *inner.masks))


def _constant(node: fx.Node) -> float | None:
    """The number that fills ``node``, if it is one."""
    if node.op == "call_function" and node.target in (aten.full.default, aten.scalar_tensor.default):
        number = node.args[-1] if node.target is aten.full.default else node.args[0]
        return float(number) if isinstance(number, (int, float)) else None
    return None


def _fits(scores: _Scores, values: fx.Node, trained: set[fx.Node]) -> bool:
    """Whether the op computes this attention: floats of fitting shapes, and no gradient for what is added."""
    q, k, v = (_shape(n) for n in (scores.q, scores.k, values))
    keys = [*k[:-2], k[-1], k[-2]] if scores.across else k
    floats = all(n.meta["val"].dtype == torch.float32 for n in (scores.q, scores.k, values))
    if not floats or len(q) not in (3, 4) or len(q) != len(k) or len(q) != len(v) or not all(map(all, (q, k, v))):
        return False
    if q[0] != keys[0] or keys[:-1] != v[:-1] or q[-1] != keys[-1] or (len(q) == 4 and q[1] % keys[1]):
        return False
    if len(q) == 4 and q[1] != keys[1] and (scores.across or keys[1] == 1):
        return False  # a product of matrices broadcasts one head, which is another thing than a group
    extents = [*q[:-1], keys[-2]]
    return all(_mask_fits(mask, extents) and mask.node not in trained for mask in scores.masks)


def _mask_fits(mask: _Mask, extents: Sequence[int]) -> bool:
    value = mask.node.meta["val"]
    shape = _shape(mask.node)
    if value.dtype != (torch.float32 if mask.hides is None else torch.bool) or len(shape) > len(extents):
        return False
    return all(m in (1, e) for m, e in zip(reversed(shape), reversed(extents), strict=False))


def _rewrite(graph: fx.Graph, node: fx.Node, scores: _Scores, values: fx.Node) -> None:
    """Put the op, and permutations around it, in the place of ``node``."""
    heads = len(_shape(scores.q)) == 4
    meta = {name: value for name, value in node.meta.items() if name != "val"}

    def emit(target: Any, *args: Any) -> fx.Node:
        found = graph.call_function(target, args)
        found.meta = dict(meta)
        return found

    def positions_first(x: fx.Node, across: bool = False) -> fx.Node:
        if heads:
            return emit(aten.permute.default, x, [0, 3, 1, 2] if across else [0, 2, 1, 3])
        return emit(aten.unsqueeze.default, emit(aten.permute.default, x, [0, 2, 1]) if across else x, 2)

    with graph.inserting_before(node):
        q, k, v = positions_first(scores.q), positions_first(scores.k, scores.across), positions_first(values)
        mask = None
        for each in scores.masks:
            added = _added(emit, each, heads, _shape(scores.k)[-1 if scores.across else -2])
            mask = added if mask is None else emit(aten.add.Tensor, mask, added)
        both = emit(fqt.attention.default, q, k, v, mask, scores.scale, scores.causal)
        output = emit(operator.getitem, both, 0)
        result = emit(aten.permute.default, output, [0, 2, 1, 3]) if heads else emit(aten.squeeze.dim, output, 2)
    result.meta = dict(node.meta)
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def _added(emit: Callable[..., fx.Node], mask: _Mask, heads: bool, keys: int) -> fx.Node:
    """What ``mask`` adds to scores, as [B or 1, H or 1, N or 1, M]."""
    node, extents = mask.node, _shape(mask.node)
    if mask.hides is not None:
        zero, hidden = emit(aten.scalar_tensor.default, 0.0), emit(aten.scalar_tensor.default, -math.inf)
        node = emit(aten.where.self, node, *((hidden, zero) if mask.hides else (zero, hidden)))
    wanted = [1] * ((4 if heads else 3) - len(extents)) + extents
    if not heads:
        wanted.insert(1, 1)
    node = emit(aten.reshape.default, node, wanted)
    return node if wanted[-1] == keys else emit(aten.expand.default, node, [*wanted[:-1], keys])


def _sole(node: Any) -> fx.Node | None:
    """A call whose result is read by one other alone; None for anything else."""
    return node if isinstance(node, fx.Node) and node.op == "call_function" and len(node.users) == 1 else None


def _depend_on(graph: fx.Graph, sources: set[fx.Node]) -> set[fx.Node]:
    found = set(sources)
    for node in graph.nodes:
        if any(a in found for a in node.all_input_nodes):
            found.add(node)
    return found


def _shape(node: fx.Node) -> list[int]:
    return [int(d) for d in node.meta["val"].shape]


def _axis(softmax: fx.Node) -> int:
    return int(arguments_of(softmax)["dim"]) % len(_shape(softmax))
