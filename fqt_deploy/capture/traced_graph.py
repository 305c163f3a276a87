"""Parts of all captures: what PyTorch's trace says of its nodes, and the order of inputs."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fqt_deploy.core.graph import TrainingGraph, meta_tensor

aten = torch.ops.aten


def reduce_provenance(module: fx.GraphModule) -> None:
    """Reduce PyTorch's provenance to ``layer`` and ``phase``, and values to their shapes and dtypes."""
    for node in module.graph.find_nodes(op="call_function", target=aten._assert_tensor_metadata.default):
        module.graph.erase_node(node)  # says what the values say

    numbers = [node.meta["seq_nr"] for node in module.graph.nodes if node.meta.get("seq_nr") is not None]
    first = min(numbers, default=0)  # autograd counts on from one capture to the next
    for node in module.graph.nodes:
        if node.meta.get("seq_nr") is not None:
            node.meta["seq_nr"] -= first
        stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
        path = str(list(stack.values())[-1][0]) if stack else ""
        node.meta["layer"] = path.removeprefix("model").removeprefix(".")
        node.meta["phase"] = "backward" if node.meta.get("partitioner_tag") == "is_backward" else "forward"
        if "val" in node.meta:
            node.meta["val"] = torch.utils._pytree.tree_map_only(
                Tensor, lambda t: meta_tensor(t.shape, t.dtype), node.meta["val"]
            )


def data_first(graph: TrainingGraph) -> TrainingGraph:
    """Put the arrays of a batch before the state, in the order of the signature; the state stays in its order."""
    nodes = [n for n in graph.graph.nodes if n.op == "placeholder"]
    by_name = dict(zip(graph.inputs, nodes, strict=True))
    place = {spec.name: i for i, spec in enumerate(graph.signature)}
    graph.inputs = sorted(graph.inputs, key=lambda name: place.get(name, len(place)))
    for name in reversed(graph.inputs):
        next(iter(graph.graph.nodes)).prepend(by_name[name])
    graph.state = {name: graph.state[name] for name in graph.inputs if name in graph.state}
    graph.graph.set_codegen(fx.graph.CodeGen())  # one argument an input; PyTorch's own nests them
    graph.module.recompile()
    return graph
