"""Codes that were split into bit-planes and are put together again, taken as they were before.

Compiled kernels multiply bit-planes; ONNX Runtime multiplies codes. A split makes of ``codes [..., 1, n]`` the planes
``(codes >> [0, 1, 2]) & 1``, and their sum weighted by 1, 2, 4 is the codes again. In between, planes are moved as
bits are (``bits_of_words.py``); the codes can be moved in their place, in one element where planes have several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from fqt_deploy.export.bits_of_words import Graph

Array = NDArray[Any]
Move = Callable[[str], str]
"""Moves codes as a node moved their planes: from the name of a value to that of another."""


def recombined(node: NodeProto, graph: Graph) -> str | None:
    """The value of ``node``, a ``ReduceSum`` of weighted planes, without the planes; None if it is something else."""
    product = graph.producers.get(node.input[0])
    axes = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
    if product is None or product.op_type != "Mul" or axes is None or axes.size != 1 or _attribute(node, "keepdims", 1):
        return None
    planes, weights = product.input[0], graph.constants.get(product.input[1])
    shape = graph.shape(planes)
    axis = int(axes.reshape(-1)[0]) % len(shape)
    if weights is None or graph.shape(product.output[0]) != shape:
        return None
    if not _lies_along(weights, 2.0 ** np.arange(shape[axis]), axis, len(shape)):
        return None
    value = codes_of(node, planes, axis, graph)
    return None if value is None else graph.derive(node, "Cast", [value], to=graph.element_type(product.output[0]))


def codes_of(source: NodeProto, planes: str, axis: int, graph: Graph) -> str | None:
    """The codes of which ``planes`` are the bits along ``axis``, without it; None where it is not known how they came.

    What is added to the graph is added on behalf of ``source``.
    """
    moves: list[Move] = []
    while (producer := graph.producers.get(planes)) is not None:
        if (codes := _split_codes(producer, axis, graph)) is not None:
            break
        step = _MOVES.get(producer.op_type)
        found = None if step is None else step(source, producer, axis, graph)
        if found is None:
            return None
        axis, move = found
        moves.append(move)
        planes = producer.input[0]
    else:
        return None
    whole = graph.shape(codes)
    value = _reshape(source, codes, (*whole[:axis], *whole[axis + 1 :]), graph)
    for move in reversed(moves):
        value = move(value)
    return value


def _lies_along(array: Array, values: Array, axis: int, rank: int) -> bool:
    """Whether ``array``, broadcast to ``rank`` axes, has ``values`` along ``axis`` and is the same along the others."""
    expected = [1] * rank
    expected[axis] = len(values)
    return array.size == len(values) and bool(
        array.ndim <= rank
        and (1,) * (rank - array.ndim) + array.shape == tuple(expected)
        and np.array_equal(array.reshape(-1), values)
    )


def _split_codes(node: NodeProto, axis: int, graph: Graph) -> str | None:
    """The codes of which ``node`` computes the bits along ``axis``, in range; None if it does something else."""
    if node.op_type != "Cast" or graph.element_type(node.output[0]) != TensorProto.BOOL:
        return None
    mask = graph.producers.get(node.input[0])
    if mask is None or mask.op_type != "BitwiseAnd" or not _is(graph.constants.get(mask.input[1]), 1):
        return None
    shift = graph.producers.get(mask.input[0])
    if shift is None or shift.op_type != "BitShift" or _attribute(shift, "direction", b"") != b"RIGHT":
        return None
    codes, amounts = str(shift.input[0]), graph.constants.get(shift.input[1])
    shape = graph.shape(shift.output[0])
    planes = shape[axis]
    if amounts is None or not _lies_along(amounts, np.arange(planes), axis, len(shape)):
        return None
    if graph.shape(codes) != (*shape[:axis], 1, *shape[axis + 1 :]) or planes > 8:
        return None
    if _largest(codes, graph) < 2**planes:
        return codes
    low = np.array(2**planes - 1, dtype=helper.tensor_dtype_to_np_dtype(graph.element_type(codes)))
    return graph.derive(node, "BitwiseAnd", [codes, graph.constant(low)])


def _largest(value: str, graph: Graph) -> float:
    """An upper bound of the unsigned integers ``value``: what a ``Min`` before it says."""
    while (node := graph.producers.get(value)) is not None and node.op_type in ("Cast", "Reshape", "Transpose"):
        value = node.input[0]
    if node is None or node.op_type != "Min":
        return math.inf
    bounds = [graph.constants[operand].max() for operand in node.input if operand in graph.constants]
    return min(map(float, bounds), default=math.inf)


def _cast(_: NodeProto, node: NodeProto, axis: int, graph: Graph) -> tuple[int, Move] | None:
    """Bits as numbers are the same bits."""
    return (axis, lambda value: value) if graph.element_type(node.input[0]) == TensorProto.BOOL else None


def _reshaped(source: NodeProto, node: NodeProto, axis: int, graph: Graph) -> tuple[int, Move] | None:
    """A reshape that leaves the axis of the planes whole."""
    before, after = graph.shape(node.input[0]), graph.shape(node.output[0])
    ahead = math.prod(after[:axis])
    places = [i for i, extent in enumerate(before) if extent == after[axis] and math.prod(before[:i]) == ahead]
    if len(places) != 1:
        return None
    target = (*after[:axis], *after[axis + 1 :])
    return places[0], lambda value: _reshape(source, value, target, graph)


def _transposed(source: NodeProto, node: NodeProto, axis: int, graph: Graph) -> tuple[int, Move] | None:
    order = _attribute(node, "perm", list(range(len(graph.shape(node.input[0]))))[::-1])
    place = order[axis]
    kept = [old - (old > place) for old in order if old != place]
    return place, lambda value: graph.derive(source, "Transpose", [value], perm=kept)


def _padded(source: NodeProto, node: NodeProto, axis: int, graph: Graph) -> tuple[int, Move] | None:
    """Zeros along other axes."""
    pads, rank = graph.constants.get(node.input[1]), len(graph.shape(node.input[0]))
    filler = graph.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
    axes = graph.constants.get(node.input[3]) if len(node.input) > 3 else np.arange(rank)
    if pads is None or axes is None or filler is None or filler.any():
        return None
    every = np.zeros((2, rank), dtype=np.int64)
    every[:, axes % rank] = pads.reshape(2, -1)
    if every[:, axis].any() or (every < 0).any() or _attribute(node, "mode", b"constant") != b"constant":
        return None
    amounts = graph.constant(np.delete(every, axis, 1).reshape(-1))

    def move(value: str) -> str:
        kind = helper.tensor_dtype_to_np_dtype(graph.element_type(value))
        return graph.derive(source, "Pad", [value, amounts, graph.constant(np.array(0, dtype=kind))])

    return axis, move


def _gathered(source: NodeProto, node: NodeProto, axis: int, graph: Graph) -> tuple[int, Move] | None:
    """A gathering along another axis."""
    along, indices = _attribute(node, "axis", 0) % len(graph.shape(node.input[0])), node.input[1]
    place = axis if axis < along else axis - len(graph.shape(indices)) + 1
    if axis >= along >= place:
        return None
    kept = along - (along > place)
    return place, lambda value: graph.derive(source, "Gather", [value, indices], axis=kept)


_MOVES: Mapping[str, Callable[[NodeProto, NodeProto, int, Graph], tuple[int, Move] | None]] = {
    "Cast": _cast,
    "Gather": _gathered,
    "Pad": _padded,
    "Reshape": _reshaped,
    "Transpose": _transposed,
}
"""By op: where the axis of the planes was before the node, and how codes are moved as it moves planes."""


def _reshape(source: NodeProto, value: str, shape: tuple[int, ...], graph: Graph) -> str:
    return graph.derive(source, "Reshape", [value, graph.constant(np.array(shape, dtype=np.int64))])


def _is(constant: Array | None, number: int) -> bool:
    return constant is not None and bool((constant == number).all())


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
