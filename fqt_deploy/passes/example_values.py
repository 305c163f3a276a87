"""Values that a graph computes on the example batch it was captured with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.core.graph import TrainingGraph


def visit_values(
    graph: TrainingGraph,
    nodes: Iterable[fx.Node],
    visit: Callable[[fx.Node, Tensor], None],
    *,
    instead: Mapping[Any, Callable[..., Any]] | None = None,
) -> bool:
    """Compute ``nodes`` of forward on the example batch and hand each to ``visit``; False if the graph has no batch.

    Whatever they depend on is computed too, and nothing else; a value is let go when nothing needs it any more.

    Args:
        graph: the graph, with or without an example batch.
        nodes: each computes one tensor, of forward.
        visit: is called with a node and its value.
        instead: by the node or the target of a call, a function of the same arguments that computes it.
    """
    instead = instead or {}
    if graph.example is None:
        return False
    wanted = set(nodes)
    needed, pending = set(wanted), list(wanted)
    while pending:
        for operand in pending.pop().all_input_nodes:
            if operand not in needed:
                needed.add(operand)
                pending.append(operand)
    left = {node: sum(user in needed for user in node.users) for node in needed}
    given = {**graph.example, "seed": torch.tensor(0)} | {n: t.initial for n, t in graph.state.items()}
    names = iter(graph.inputs)
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in graph.graph.nodes:
            name = next(names) if node.op == "placeholder" else ""
            if node not in needed:
                continue
            if node.op == "placeholder":
                values[node] = given[name]
            else:
                args, kwargs = (fx.map_arg(a, values.__getitem__) for a in (node.args, node.kwargs))
                compute = instead.get(node) or instead.get(node.target) or node.target
                found = compute(*args, **kwargs)
                values[node] = torch.utils._pytree.tree_map_only(Tensor, Tensor.contiguous, found)
            if node in wanted:
                value = values[node]
                assert isinstance(value, Tensor)
                visit(node, value)
            for operand in node.all_input_nodes:
                left[operand] -= 1
                if not left[operand]:
                    del values[operand]
    return True


def plain_convolution_by_onednn(x: Tensor, w: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    """``fqt.conv2d`` by oneDNN, in half of the time; its sums are rounded in another order.

    With one input channel oneDNN can be wrong, see ``plain_convolution``.
    """
    if x.shape[3] == 1:
        product: Tensor = torch.ops.fqt.conv2d(x, w, stride, padding)
        return product
    return torch.conv2d(x.permute(0, 3, 1, 2), w, None, stride, padding).permute(0, 2, 3, 1)


def code_counts(codes: Tensor) -> Counter[int]:
    """How often each sign or level occurs among ``codes``, which are whole numbers."""
    least = int(codes.min())
    times = (codes - least).to(torch.int16).flatten().bincount().tolist()
    return Counter({least + i: n for i, n in enumerate(times) if n})
