"""Bits that were packed into words and are unpacked again, taken as they were before.

Compiled kernels want bits in words. To ONNX Runtime both ways are several passes over memory, and what it computes
with are numbers, one for each bit. Where both ways are in the graph, through whatever moves words in between, neither
is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from fqt_deploy.ops.lib.onnx_bits import BITS, ONES, SIGNS
from fqt_deploy.ops.lib.packed_words import WORD

_SHIFTS = np.arange(0, WORD, 8)
_POWERS = (np.int64(1) << np.arange(WORD)).astype(np.int32)
"""The weight of each bit of a word; that of the highest is negative."""

Array = NDArray[Any]


class Graph(Protocol):
    """A graph in the making: what is known of its values, and how nodes are added."""

    constants: dict[str, Array]
    producers: dict[str, NodeProto]
    bits: dict[str, str | None]

    def name(self, value: str) -> str:
        """The name under which ``value`` is computed."""

    def shape(self, value: str) -> tuple[int, ...]:
        """The extents of ``value``."""

    def element_type(self, value: str) -> int:
        """ONNX's number of the element type of ``value``."""

    def constant(self, array: Array) -> str:
        """The name of a constant."""

    def derive(self, source: NodeProto, op: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node on behalf of ``source`` and return its result."""


def unpacked(node: NodeProto, graph: Graph) -> str | None:
    """The value of ``node``, a ``Gather`` from a table of bytes, without the words; None if it is something else.

    The table is one of ``ops/lib/onnx_bits.py``: bits or signs of each byte, or the number of its ones.
    """
    table = graph.constants.get(node.input[0])
    if table is None or len(table) != len(ONES) or (words := _words_of_octets(node.input[1], graph)) is None:
        return None
    if not (np.array_equal(table, BITS) or np.array_equal(table, SIGNS) or np.array_equal(table, ONES)):
        return None
    if (bits := bits_of(words, graph)) is None:
        return None
    target = graph.constant(np.array([*graph.shape(words), 4, 8], dtype=np.int64))
    octets = graph.derive(node, "Reshape", [bits, target])
    kind = int(helper.np_dtype_to_tensor_dtype(table.dtype))
    if table.ndim == 1:
        numbers = graph.derive(node, "Cast", [octets], to=kind)
        return graph.derive(node, "ReduceSum", [numbers, graph.constant(np.array([-1]))], keepdims=0)
    if np.array_equal(table, BITS):
        return graph.derive(node, "Cast", [octets], to=kind)
    signs = [graph.constant(np.array(sign, dtype=table.dtype)) for sign in (1, -1)]
    return graph.derive(node, "Where", [octets, *signs])


def bits_of(words: str, graph: Graph) -> str | None:
    """The bits of packed words, bool [*words.shape, 32]; None where it is not known how they were packed."""
    if words not in graph.bits:
        graph.bits[words] = _found_bits(words, graph)
    return graph.bits[words]


def _found_bits(words: str, graph: Graph) -> str | None:
    if (constant := graph.constants.get(words)) is not None:
        if constant.dtype != np.int32:
            return None
        return graph.constant((constant[..., None].astype(np.int64) >> np.arange(WORD)) & 1 != 0)
    node = graph.producers.get(words)
    if node is None or graph.element_type(words) != TensorProto.INT32:
        return None
    if node.op_type == "ReduceSum":
        return _packed_bits(node, graph)
    moved = _MOVES.get(node.op_type)
    return None if moved is None else moved(node, graph)


def _packed_bits(node: NodeProto, graph: Graph) -> str | None:
    """What ``onnx_bits.pack`` packed."""
    product = graph.producers.get(node.input[0])
    if product is None or product.op_type != "Mul" or _attributes(node).get("keepdims", 1):
        return None
    integers, rank = product.input[0], len(graph.shape(product.input[0]))
    axes = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
    powers = graph.constants.get(product.input[1])
    if axes is None or [int(axis) % rank for axis in axes] != [rank - 1]:
        return None
    if powers is None or not np.array_equal(powers, _POWERS):
        return None
    return _truths(integers, node, graph)


def _truths(integers: str, source: NodeProto, graph: Graph) -> str | None:
    """What ``integers`` were cast of, bool, in their shape: reshaped, and filled up with zeros, as they were."""
    node = graph.producers.get(integers)
    if node is None:
        return None
    if node.op_type == "Cast" and graph.element_type(node.input[0]) == TensorProto.BOOL:
        return str(node.input[0])
    if node.op_type not in ("Pad", "Reshape") or (truths := _truths(node.input[0], source, graph)) is None:
        return None
    if node.op_type == "Reshape":
        target = np.array(graph.shape(integers), dtype=np.int64)
        return graph.derive(source, "Reshape", [truths, graph.constant(target)])
    filler = graph.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
    if filler is None or filler.any() or _attributes(node).get("mode", b"constant") != b"constant":
        return None
    return graph.derive(source, "Pad", [truths, node.input[1], graph.constant(np.array(False)), *node.input[3:]])


def _words_of_octets(octets: str, graph: Graph) -> str | None:
    """The words whose bytes, lowest first, are ``octets`` ([..., 4] int32); None if they are something else."""
    value = octets
    for op, operand in (("Cast", None), ("BitwiseAnd", np.array(255)), ("BitShift", _SHIFTS)):
        node = graph.producers.get(value)
        if node is None or node.op_type != op:
            return None
        if operand is not None and not np.array_equal(graph.constants.get(node.input[1], np.empty(0)), operand):
            return None
        if op == "BitShift" and _attributes(node)["direction"] != b"RIGHT":
            return None
        value = node.input[0]
    spread = graph.producers.get(value)  # [..., 1] uint32
    if spread is None or spread.op_type != "Reshape" or graph.shape(octets)[:-1] != graph.shape(value)[:-1]:
        return None
    unsigned = graph.producers.get(spread.input[0])
    if unsigned is None or unsigned.op_type != "Cast" or graph.shape(unsigned.output[0]) != graph.shape(octets)[:-1]:
        return None
    return unsigned.input[0] if graph.element_type(unsigned.input[0]) == TensorProto.INT32 else None


def _reshaped(node: NodeProto, graph: Graph) -> str | None:
    if (bits := bits_of(node.input[0], graph)) is None:
        return None
    target = np.array([*graph.shape(node.output[0]), WORD], dtype=np.int64)
    return graph.derive(node, "Reshape", [bits, graph.constant(target)])


def _transposed(node: NodeProto, graph: Graph) -> str | None:
    if (bits := bits_of(node.input[0], graph)) is None:
        return None
    rank = len(graph.shape(node.input[0]))
    order = _attributes(node).get("perm", list(range(rank))[::-1])
    return graph.derive(node, "Transpose", [bits], perm=[*order, rank])


def _gathered(node: NodeProto, graph: Graph) -> str | None:
    if (bits := bits_of(node.input[0], graph)) is None:
        return None
    axis = _attributes(node).get("axis", 0) % len(graph.shape(node.input[0]))
    return graph.derive(node, "Gather", [bits, node.input[1]], axis=axis)


def _sliced(node: NodeProto, graph: Graph) -> str | None:
    axes = graph.constants.get(node.input[3]) if len(node.input) > 3 else None
    if axes is None or (bits := bits_of(node.input[0], graph)) is None:
        return None
    places = graph.constant(np.asarray(axes % len(graph.shape(node.input[0]))))
    return graph.derive(node, "Slice", [bits, *node.input[1:3], places, *node.input[4:]])


def _expanded(node: NodeProto, graph: Graph) -> str | None:
    if (bits := bits_of(node.input[0], graph)) is None:
        return None
    target = np.array([*graph.shape(node.output[0]), WORD], dtype=np.int64)
    return graph.derive(node, "Expand", [bits, graph.constant(target)])


def _concatenated(node: NodeProto, graph: Graph) -> str | None:
    parts = [bits_of(value, graph) for value in node.input]
    axis = _attributes(node)["axis"] % len(graph.shape(node.input[0]))
    return None if None in parts else graph.derive(node, "Concat", [p for p in parts if p is not None], axis=axis)


def _padded(node: NodeProto, graph: Graph) -> str | None:
    pads = graph.constants.get(node.input[1])
    filler = graph.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
    if pads is None or filler is None or filler.any() or _attributes(node).get("mode", b"constant") != b"constant":
        return None
    if (bits := bits_of(node.input[0], graph)) is None:
        return None
    rank = len(graph.shape(node.input[0]))
    given = graph.constants.get(node.input[3]) if len(node.input) > 3 else np.arange(rank)
    if given is None:
        return None
    axes = graph.constant(np.asarray(given % rank))
    operands = [bits, graph.constant(pads), graph.constant(np.array(False)), axes]
    return graph.derive(node, "Pad", operands)


_MOVES: Mapping[str, Callable[[NodeProto, Graph], str | None]] = {
    "Concat": _concatenated,
    "Expand": _expanded,
    "Gather": _gathered,
    "Pad": _padded,
    "Reshape": _reshaped,
    "Slice": _sliced,
    "Transpose": _transposed,
}
"""Ops that move words, each with how it moves their bits."""


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
