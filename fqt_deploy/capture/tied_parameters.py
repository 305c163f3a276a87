"""Tied parameters, which have several names: the step stores each once, under the first."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn

aten = torch.ops.aten


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every parameter path, duplicates of tied ones included, to the path its tensor is stored under."""
    first = {id(p): name for name, p in model.named_parameters()}
    return {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}


def merge_equal_inputs(traced: fx.GraphModule, inputs: list[str]) -> None:
    """Merge inputs of one name into one input: a tied parameter is traced as several."""
    placeholders = [n for n in traced.graph.nodes if n.op == "placeholder"]
    for position in reversed(range(len(inputs))):
        first = inputs.index(inputs[position])
        if first != position:
            placeholders[position].replace_all_uses_with(placeholders[first])
            traced.graph.erase_node(placeholders[position])
            del inputs[position]


def sum_tied_gradients(
    traced: fx.GraphModule, output: fx.Node, names: list[str], nodes: list[fx.Node], aliases: Mapping[str, str]
) -> None:
    """Gradients of one parameter under several names are one output, their sum under the first."""
    for position in reversed(range(len(names))):
        name = names[position]
        canonical = "grad/" + aliases[name.removeprefix("grad/")] if name.startswith("grad/") else name
        if canonical != name and canonical not in names:
            names[position] = canonical  # PyTorch has summed them already
        elif canonical != name:
            target = names.index(canonical)
            with traced.graph.inserting_before(output):
                total = traced.graph.call_function(aten.add.Tensor, (nodes[target], nodes[position]))
            total.meta.update(nodes[target].meta)
            nodes[target] = total
            del names[position], nodes[position]
