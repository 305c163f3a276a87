"""Make the loss NaN where a layer that is binarized met NaN: signs and codes cannot hold it.

Before::

    %bits  = fqt.pack_signs(aten.relu(aten.add(aten.mul(%product, %scale), %bias)))
    %alpha = fqt.weight_scale(%weight);  return (%loss, ...)

After::

    %bits  = ...
    %first = aten.minimum(fqt.nan_number(%scale, 3), fqt.nan_number(%bias, 3), fqt.nan_number(%alpha, 3))
    %shown = fqt.show_nan(%loss, %first);  return (%shown, ...)

What is tested are small values that the signs were computed from: scales, biases, statistics of normalizations. A NaN
in a large value is in the statistics of it; where there are none, the large value is read once more. The number is that
of the layer, in forward order.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.graph import Emitter, TrainingGraph
from fqt_deploy.ops.op import Kind, op_of
from fqt_deploy.ops.traits import Layout, Nan
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
fqt = torch.ops.fqt

SMALL = 16
"""A value counts as small if what is made of it has this many times as many elements: testing it takes no time then."""
_PACKED = (fqt.pack_signs.default, fqt.pack_levels.default)
"""Ops whose first operand loses NaN in them."""


@dataclass(frozen=True)
class ShowNan(Pass):
    """Test what every sign of forward, every weight scale and every quantized gradient was computed from."""

    name = "show-nan"

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite the loss; a graph without one, of a prediction, stays."""
        results = graph.results()
        if "loss" not in results:
            return False
        number = {record.path: i for i, record in enumerate(graph.layers)}
        first: dict[fx.Node, int] = {}
        for node, sources in _tested(graph):
            layer = number.get(node.meta.get("layer", ""), len(number))
            for source in sources:
                first[source] = min(layer, first.get(source, layer))
        if not first:
            return False
        found: fx.Node | None = None
        place = {node: i for i, node in enumerate(graph.graph.nodes)}
        for layer, sources in _alike(first):
            path = graph.layers[layer].path if layer < len(number) else ""
            emit = Emitter(graph, _behind(max(sources, key=place.__getitem__)), layer=path, phase="forward")
            total = reduce(lambda a, b: emit(aten.add.Tensor, a, b), sources)
            own = emit(fqt.nan_number.default, total, layer)
            found = own if found is None else Emitter(graph, graph.output_node())(aten.minimum.default, found, own)
        shown = Emitter(graph, graph.output_node(), layer="")(fqt.show_nan.default, results["loss"], found)
        graph.set_results(results | {"loss": shown})
        return True


def _tested(graph: TrainingGraph) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """Nodes that NaN is lost in, or that tell of one that is, with the values to test."""
    for node in graph.calls(*_PACKED, fqt.weight_scale.default, fqt.position_statistics.default):
        if node.target in _PACKED:
            yield node, _sources(node.all_input_nodes[0], _inputs(graph))
        elif node.target is fqt.weight_scale.default:
            yield node, [node]
        else:
            yield node, [_squares(graph, node)]


def _squares(graph: TrainingGraph, statistics: fx.Node) -> fx.Node:
    """The sums of squares among ``statistics``: a minimum and a maximum may lose a NaN. Not all recipes read them."""
    used = [user for user in statistics.users if user.args[1] == 2]
    layer = statistics.meta.get("layer", "")
    return used[0] if used else Emitter(graph, statistics.next, layer=layer, phase="backward").item(statistics, 2)


def _alike(first: dict[fx.Node, int]) -> list[tuple[int, list[fx.Node]]]:
    """Values by layer and shape: their sum is NaN where one is, or where they are infinite of both signs."""
    groups: dict[tuple[int, tuple[int, ...]], list[fx.Node]] = {}
    for source, layer in first.items():
        groups.setdefault((layer, tuple(source.meta["val"].shape)), []).append(source)
    return [(layer, sources) for (layer, _), sources in groups.items()]


def _inputs(graph: TrainingGraph) -> frozenset[fx.Node]:
    """The step's inputs that are checked before it: neither state nor made of it."""
    return frozenset(graph.placeholder(name) for name in graph.inputs if name not in graph.state)


def _sources(signed: fx.Node, checked: frozenset[fx.Node]) -> list[fx.Node]:
    """Values of which one is NaN where ``signed`` is."""
    small, large = _leaves(signed, _elements(signed) // SMALL, checked)
    covered = {value for node in small for value in _behind_statistics(node)}
    return [*small, *(node for node in large if node not in covered)]


def _leaves(signed: fx.Node, limit: int, checked: frozenset[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    """What ``signed`` is computed from by ops that pass NaN on: values of up to ``limit`` elements, and larger ones."""
    small: dict[fx.Node, None] = {}
    large: dict[fx.Node, None] = {}
    seen: set[fx.Node] = set()
    pending = [signed]
    while pending:
        node = pending.pop()
        if node in seen or node in checked or _dtype(node) != torch.float32:
            continue
        seen.add(node)
        tensor = isinstance(node.meta["val"], torch.Tensor)
        if tensor and _elements(node) <= limit and not _is_inlined(node):
            small[node] = None
        elif _passes_on(node):
            pending += node.all_input_nodes
        else:
            large[node] = None
    return list(small), list(large)


def _behind_statistics(node: fx.Node) -> set[fx.Node]:
    """All values that ``node`` is NaN for if one of them is."""
    seen: set[fx.Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if _passes_on(current) or _reduces(current):
            pending += current.all_input_nodes
    return seen


def _passes_on(node: fx.Node) -> bool:
    """Whether an element of the result is NaN where one is that it is computed from."""
    op = op_of(node)
    if node.target is operator.getitem:
        return _passes_on(node.all_input_nodes[0])
    return op is not None and op.traits.nan is Nan.KEPT and op.traits.layout is not Layout.REDUCTION


def _is_inlined(node: fx.Node) -> bool:
    """Whether a value passes NaN on and need not be in memory: one more reader could make code generation write it."""
    op = op_of(node)
    return op is not None and op.traits.kind is Kind.ELEMENTWISE and _passes_on(node)


def _reduces(node: fx.Node) -> bool:
    op = op_of(node)
    return op is not None and op.traits.nan is Nan.KEPT and op.traits.layout is Layout.REDUCTION


def _behind(node: fx.Node) -> fx.Node:
    """The node to insert in front of, so that ``node`` is computed already."""
    place = node.next
    while place.op == "placeholder":
        place = place.next
    return place


def _elements(node: fx.Node) -> int:
    value: Any = node.meta["val"]
    return int(value.numel()) if isinstance(value, torch.Tensor) else 0


def _dtype(node: fx.Node) -> torch.dtype | None:
    """The type of a value; float32 of several at once."""
    value: Any = node.meta["val"]
    return value.dtype if isinstance(value, torch.Tensor) else torch.float32
