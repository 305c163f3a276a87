"""The kernels of a step as an ONNX file calls them: what each reads and writes, in which shapes, and its name there.

A view is no call: kernels read and write each value in the one shape that the file declares for it.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.call import call_of, source_of
from fqt_deploy.core.graph import VIEWS, TrainingGraph
from fqt_deploy.core.onnx_names import NEXT
from fqt_deploy.export.graph_writer import label_of, operand_of
from fqt_deploy.ops.lib.onnx_body import OnnxValue

Place = tuple[fx.Node, int]
"""What is computed, or an input of the graph, and the number of the result."""


@dataclass(frozen=True)
class Group:
    """The nodes that one kernel computes.

    Attributes:
        symbol: name of the compiled kernel; equal for equal kernels.
        root: the node whose results are written.
        members: nodes that are computed on the way, operands first.
        leaves: what is read, in the kernel's order.
        numbers: names of the arguments of ``root`` that the kernel reads behind the leaves.
    """

    symbol: str
    root: fx.Node
    members: tuple[fx.Node, ...]
    leaves: tuple[fx.Node, ...]
    numbers: tuple[str, ...]


@dataclass(frozen=True)
class KernelCall:
    """One call of a kernel in an ONNX file.

    Attributes:
        group: what the kernel computes.
        operands: the values that it reads, each once.
        positions: for each leaf, which of the operands it is, perhaps in another shape.
        results: the values that it writes.
        name: name of the kernel's function; equal for calls that one function serves.
    """

    group: Group
    operands: tuple[OnnxValue, ...]
    positions: tuple[int, ...]
    results: tuple[OnnxValue, ...]
    name: str


@dataclass(frozen=True)
class KernelCalls:
    """The calls of a step, in order, and where its values lie.

    Attributes:
        calls: one for each kernel.
        values: the inputs of the graph and the results of the calls, by the nodes that compute them.
        roots: the nodes whose results calls write.
    """

    calls: tuple[KernelCall, ...]
    values: Mapping[Place, OnnxValue]
    roots: frozenset[fx.Node]

    def value(self, node: fx.Node) -> OnnxValue:
        """What ``node``, perhaps a view or one of several results, lies in."""
        return self.values[_place(node, self.roots)]

    @property
    def digest(self) -> str:
        """A name of the set of functions that the calls need."""
        return hashlib.sha256("\n".join(sorted({call.name for call in self.calls})).encode()).hexdigest()[:16]


def kernel_calls(graph: TrainingGraph, groups: Sequence[Group]) -> KernelCalls:
    """What the kernels ``groups`` of ``graph`` read and write in an ONNX file."""
    roots = frozenset(group.root for group in groups)
    outputs = _outputs(graph, roots)
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    values: dict[Place, OnnxValue] = {
        (node, 0): operand_of(label, node.meta["val"]) for label, node in zip(graph.inputs, placeholders, strict=True)
    }
    calls = []
    for group in groups:
        read = [_place(leaf, roots) for leaf in group.leaves]
        places = list(dict.fromkeys(read))
        operands = tuple(values[place] for place in places)
        positions = tuple(places.index(place) for place in read)
        results = tuple(_result(group.root, i, value, outputs) for i, value in enumerate(results_of(group.root)))
        values |= {(group.root, i): result for i, result in enumerate(results)}
        calls.append(KernelCall(group, operands, positions, results, _name(group, operands, positions, results)))
    return KernelCalls(tuple(calls), values, roots)


def _place(node: fx.Node, roots: Collection[fx.Node]) -> Place:
    """The place that ``node`` lies in, where kernels write ``roots``."""
    while node.target in VIEWS and node not in roots:
        node = source_of(node)
    if node.target is operator.getitem:
        item = call_of(node)
        return item.source, item.index
    return node, 0


def results_of(root: fx.Node) -> list[torch.Tensor]:
    """Fake tensors of the results of ``root``."""
    value = root.meta["val"]
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _outputs(graph: TrainingGraph, roots: Collection[fx.Node]) -> dict[Place, OnnxValue]:
    """Results that are outputs of the graph, with the name and the shape of the first that each is."""
    found: dict[Place, OnnxValue] = {}
    for label, node in graph.results().items():
        name = label + NEXT if label in graph.inputs else label
        found.setdefault(_place(node, roots), operand_of(name, node.meta["val"]))
    return found


def _result(root: fx.Node, index: int, value: torch.Tensor, outputs: Mapping[Place, OnnxValue]) -> OnnxValue:
    several = isinstance(root.meta["val"], (tuple, list))
    name = f"{label_of(root)}:{index}" if several else label_of(root)
    return outputs.get((root, index)) or operand_of(name, value)


def _name(
    group: Group, operands: tuple[OnnxValue, ...], positions: tuple[int, ...], results: tuple[OnnxValue, ...]
) -> str:
    """The op's name and a digest of what the function does, which is the kernel's and the shapes around it."""
    types = [(value.dtype, value.shape) for value in (*operands, *results)]
    leaves = [tuple(int(d) for d in leaf.meta["val"].shape) for leaf in group.leaves]
    digest = hashlib.sha256(repr((group.symbol, types, positions, leaves)).encode()).hexdigest()[:16]
    op, _, _ = group.symbol.removeprefix("fqt_").rpartition("_")
    return f"{op}_{digest}"
