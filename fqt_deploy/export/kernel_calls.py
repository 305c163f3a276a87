"""The kernels of a step as an ONNX file calls them: what each reads and writes, in which shapes, and its name there.

A view is no call: kernels read and write each value in the one shape that the file declares for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from fqt_deploy.core.buffer import Buffer, buffer_of, buffers_of
from fqt_deploy.core.graph import TrainingGraph
from fqt_deploy.core.onnx_names import NEXT
from fqt_deploy.export.graph_writer import label_of, operand_of
from fqt_deploy.ops.lib.onnx_body import OnnxValue


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
        values: the inputs of the graph and the results of the calls, by their buffer.
    """

    calls: tuple[KernelCall, ...]
    values: Mapping[Buffer, OnnxValue]

    def value(self, node: fx.Node) -> OnnxValue:
        """What ``node``, perhaps a view or one of several results, lies in."""
        return self.values[buffer_of(node)]

    @property
    def digest(self) -> str:
        """A name of the set of functions that the calls need."""
        return hashlib.sha256("\n".join(sorted({call.name for call in self.calls})).encode()).hexdigest()[:16]


def kernel_calls(graph: TrainingGraph, groups: Sequence[Group]) -> KernelCalls:
    """What the kernels ``groups`` of ``graph`` read and write in an ONNX file."""
    outputs = _outputs(graph)
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    values: dict[Buffer, OnnxValue] = {
        Buffer(node): operand_of(label, node.meta["val"])
        for label, node in zip(graph.inputs, placeholders, strict=True)
    }
    calls = []
    for group in groups:
        read = [buffer_of(leaf) for leaf in group.leaves]
        buffers = list(dict.fromkeys(read))
        operands = tuple(values[buffer] for buffer in buffers)
        positions = tuple(buffers.index(buffer) for buffer in read)
        written = {buffer: outputs.get(buffer) or _value(buffer) for buffer in buffers_of(group.root)}
        values |= written
        results = tuple(written.values())
        calls.append(KernelCall(group, operands, positions, results, _name(group, operands, positions, results)))
    return KernelCalls(tuple(calls), values)


def _outputs(graph: TrainingGraph) -> dict[Buffer, OnnxValue]:
    """Results that are outputs of the graph, with the name and the shape of the first that each is."""
    found: dict[Buffer, OnnxValue] = {}
    for label, node in graph.results().items():
        name = label + NEXT if label in graph.inputs else label
        found.setdefault(buffer_of(node), operand_of(name, node.meta["val"]))
    return found


def _value(buffer: Buffer) -> OnnxValue:
    """A result that is no output, named after its call."""
    several = len(buffers_of(buffer.root)) > 1
    name = f"{label_of(buffer.root)}:{buffer.index}" if several else label_of(buffer.root)
    return operand_of(name, buffer.value)


def _name(
    group: Group, operands: tuple[OnnxValue, ...], positions: tuple[int, ...], results: tuple[OnnxValue, ...]
) -> str:
    """The op's name and a digest of what the function does, which is the kernel's and the shapes around it."""
    types = [(value.dtype, value.shape) for value in (*operands, *results)]
    leaves = [tuple(int(d) for d in leaf.meta["val"].shape) for leaf in group.leaves]
    digest = hashlib.sha256(repr((group.symbol, types, positions, leaves)).encode()).hexdigest()[:16]
    op, _, _ = group.symbol.removeprefix("fqt_").rpartition("_")
    return f"{op}_{digest}"
