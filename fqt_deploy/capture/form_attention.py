"""Attention as one op with a backward of its own, formed before a model is differentiated.

Before::

    %s = aten.matmul(%q, aten.transpose(%k, -2, -1));  %p = aten.softmax(aten.add(aten.mul(%s, 0.125), %mask), -1)
    %y = aten.matmul(%p, %v)                                    # or aten.scaled_dot_product_attention(%q, %k, %v, ...)

After::

    %o, %lse = fqt.attention(permute(%q), permute(%k), permute(%v), %mask, None, 0.125, False, 0.0)  # [B, N, H, D] each
    %y = permute(%o)

The op has heads behind positions, as a linear layer gives them: the permutations that models write cancel with these.
Dropout of weights draws two numbers for each sample, from which forward and backward make the same choices.
What is left in plain ops: attention whose weights something else reads.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

import fqt_deploy.ops.registry  # noqa: F401 - defines the op
from fqt_deploy.capture.attention_patterns import Attention, Heads, Mask, attention_of, mask_fits, shape_of

aten = torch.ops.aten
fqt = torch.ops.fqt


def form_attention(program: ExportedProgram) -> None:
    """Rewrite each attention of a traced forward pass, in place, that the op can compute."""
    graph = program.graph_module.graph
    for node in graph.find_nodes(op="call_function", target=aten._assert_tensor_metadata.default):
        graph.erase_node(node)  # what a cast asserts, a trace of fixed types has proved
    for node in list(graph.nodes):
        found = attention_of(node)
        if found is not None and _fits(found):
            _rewrite(graph, node, found)
    program.graph_module.recompile()


def _fits(found: Attention) -> bool:
    """Whether the op computes this attention: floats of fitting shapes."""
    scores = found.scores
    operands = (scores.q, scores.k, found.v)
    q, k, v = (x.shape for x in operands)
    floats = all(x.node.meta["val"].dtype == torch.float32 for x in operands)
    if not floats or len(q) not in (3, 4) or len(q) != len(k) or len(q) != len(v) or not all(map(all, (q, k, v))):
        return False
    if q[0] != k[0] or k[:-1] != v[:-1] or q[-1] != k[-1] or (len(q) == 4 and q[1] % k[1]) or found.dropout >= 1:
        return False
    return all(mask_fits(mask, [*q[:-1], k[-2]]) for mask in scores.masks)


def _rewrite(graph: fx.Graph, node: fx.Node, found: Attention) -> None:
    """Put the op, and permutations around it, in the place of ``node``."""
    scores = found.scores
    heads = len(scores.q.axes) == 4
    meta = {name: value for name, value in node.meta.items() if name != "val"}

    def emit(target: Any, *args: Any) -> fx.Node:
        made = graph.call_function(target, args)
        made.meta = dict(meta)
        return made

    def positions_first(x: Heads) -> fx.Node:
        if heads:
            return emit(aten.permute.default, x.node, [x.axes[i] for i in (0, 2, 1, 3)])
        permuted = x.node if x.axes == (0, 1, 2) else emit(aten.permute.default, x.node, list(x.axes))
        return emit(aten.unsqueeze.default, permuted, 2)

    with graph.inserting_before(node):
        q, k, v = positions_first(scores.q), positions_first(scores.k), positions_first(found.v)
        mask = None
        for each in scores.masks:
            added = _added(emit, each, heads, scores.k.shape[-2])
            mask = added if mask is None else emit(aten.add.Tensor, mask, added)
        draws = emit(aten.rand.default, [scores.q.shape[0], 2]) if found.dropout else None
        both = emit(fqt.attention.default, q, k, v, mask, draws, scores.scale, scores.causal, found.dropout)
        output = emit(operator.getitem, both, 0)
        result = emit(aten.permute.default, output, [0, 2, 1, 3]) if heads else emit(aten.squeeze.dim, output, 2)
        if list(found.order) != sorted(found.order):
            result = emit(aten.permute.default, result, list(found.order))
    result.meta = dict(node.meta)
    node.replace_all_uses_with(result)
    _erase(graph, node)


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Remove a call that nothing reads, and what it alone read.

    Dropout, and what changes a tensor in place, would be computed still.
    """
    waiting, erased = [node], set[fx.Node]()
    while waiting:
        dead = waiting.pop()
        if dead in erased or dead.users or dead.op != "call_function":
            continue
        operands = dead.all_input_nodes
        graph.erase_node(dead)
        erased.add(dead)
        waiting += operands


def _added(emit: Callable[..., fx.Node], mask: Mask, heads: bool, keys: int) -> fx.Node:
    """What ``mask`` adds to scores, as [B or 1, H or 1, N or 1, M]."""
    node, extents = mask.node, shape_of(mask.node)
    if mask.hides is not None:
        zero, hidden = emit(aten.scalar_tensor.default, 0.0), emit(aten.scalar_tensor.default, -math.inf)
        node = emit(aten.where.self, node, *((hidden, zero) if mask.hides else (zero, hidden)))
    wanted: Sequence[int] = [1] * ((4 if heads else 3) - len(extents)) + extents
    if not heads:
        wanted = [wanted[0], 1, *wanted[1:]]
    node = emit(aten.reshape.default, node, wanted)
    return node if wanted[-1] == keys else emit(aten.expand.default, node, [*wanted[:-1], keys])
