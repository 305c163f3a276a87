"""Name the binarized layers that read nearly the same code everywhere, on the example batch.

The graph stays as it is; each such layer becomes a line of ``graph.notes``.

A sign is that of the value itself: no mean is subtracted. So a layer behind a sigmoid, or one that reads images in
(0, 1], reads signs that are all +1, and tells no sample from another. (A ReLU's zeros have the sign -1: behind it both
signs are there.) The codes are those of the quantized step as it begins, on the example batch, without the zeros that
a convolution pads with.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import LayerRecord, TrainingGraph
from fqt_deploy.ops.lib.levels import unit
from fqt_deploy.passes.annotate_layers import products_of
from fqt_deploy.passes.example_values import code_counts, plain_convolution_by_onednn, visit_values
from fqt_deploy.passes.pass_base import Pass

fqt = torch.ops.fqt

LEAST_SHARE = 0.99
"""A layer is named if its most frequent code has at least this share of all that it reads."""
_MOST_LAYERS = 8
"""Layers that get a line of their own; one more line counts the others."""


@dataclass(frozen=True)
class FindConstantCodes(Pass):
    """Add a note for every binarized layer that reads one code nearly everywhere."""

    name = "find-constant-codes"

    def run(self, graph: TrainingGraph) -> bool:
        """Add the notes; an example batch of one value says nothing about data, and gets a note itself."""
        products = products_of(graph, "forward")
        if not products or graph.example is None:
            return False
        inputs = [graph.example[spec.name] for spec in graph.signature if spec.role == "input"]
        if inputs and all(map(_is_constant, inputs)):
            graph.notes += (
                "the example batch has one value everywhere, so layers whose signs are constant cannot be told: "
                "give it values like those of the data",
            )
            return False
        counts = _code_counts(graph, products)
        found = [(record, counts[record.weight]) for record in graph.layers if record.weight in counts]
        constant = [(record, codes) for record, codes in found if max(codes.values()) >= LEAST_SHARE * codes.total()]
        graph.notes += tuple(_note(record, codes) for record, codes in constant[:_MOST_LAYERS])
        if others := [record.path for record, _ in constant[_MOST_LAYERS:]]:
            graph.notes += (f"the same holds for {len(others)} more layers: {', '.join(others)}",)
        return False


def _is_constant(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and bool((tensor == tensor.reshape(-1)[0]).all())


def _code_counts(graph: TrainingGraph, products: Iterable[fx.Node]) -> Mapping[str, Counter[int]]:
    """How often each layer reads each sign or level, by the name of its weight; over all of its calls."""
    owners = {call_of(product).x: product.meta["record"].weight for product in products}
    if graph.code_counts.keys() >= set(owners.values()):
        return graph.code_counts
    counts: dict[str, Counter[int]] = {}

    def count(node: fx.Node, codes: Tensor) -> None:
        counts[owners[node]] = counts.get(owners[node], Counter()) + code_counts(codes)

    visit_values(graph, owners, count, instead={fqt.conv2d.default: plain_convolution_by_onednn})
    return counts


def _note(record: LayerRecord, counts: Counter[int]) -> str:
    """The line about a layer: the share is rounded down, so that 100 % means all."""
    level = max(counts, key=lambda each: counts[each])
    percent = f"{math.floor(1000 * counts[level] / counts.total()) / 10:g} %"
    name = record.path
    if record.grid is None:
        what, instead = f"signs that it reads are {'+' if level > 0 else '-'}", f", --bits '{name}=1,2' for more bits"
    else:
        what, instead = f"activations that it reads are {level * unit(record.grid.spacing, record.grid.signed):.3g}", ""
    return (
        f"layer {name!r}: {percent} of the {what} on the example batch, so that it can hardly tell samples apart; "
        f"give it values around 0 (a normalized input, a norm in front of it){instead}, or --exclude '{name}'"
    )
