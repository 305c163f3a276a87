"""Products over positions, computed from the image that the positions were packed of.

A weight gradient multiplies codes of gradients with what each tap meets at each position. Compiled kernels want those
rows as packed bits, plane by plane: ``pack_positions``. For ONNX Runtime the codes or signs of the image do: columns
are gathered as they lie, and one integer product takes levels in place of planes. All sums are of integers, so that
the results are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from fqt_deploy.export.bits_of_words import Graph, bits_of
from fqt_deploy.export.codes_of_planes import codes_of
from fqt_deploy.ops.lib.levels import largest_code
from fqt_deploy.ops.lib.packed_words import WORD

Array = NDArray[Any]

_LARGEST = (2**15 - 1) // (2 * 255)
"""The largest level: ONNX Runtime adds two products with a code of 8 bits in 16, and what does not fit it saturates."""


@dataclass(frozen=True)
class _Image:
    """What the taps of a convolution read.

    Attributes:
        levels: [N, H, W, C] int8, 0 around the image.
        kernel: KH, KW.
        places: [N * OH * OW, KH * KW] int64: the row of ``levels``, as [N * H * W, C], of each tap at each position.
    """

    levels: str
    kernel: list[int]
    places: Array


def product(call: NodeProto, calls: Mapping[str, NodeProto], graph: Graph) -> str | None:
    """The value of ``call`` without packed positions; None if it is something else, or they came in another way.

    Args:
        call: a call of a function of domain ``ai.fqt``.
        calls: the calls before it, by their results.
        graph: the graph that it is added to.
    """
    compute = _PRODUCTS.get(call.op_type)
    packing = None if compute is None else calls.get(call.input[-1])
    if compute is None or packing is None or packing.op_type != "pack_positions":
        return None
    image = _image(call, packing, graph)
    return None if image is None else compute(call, image, graph)


def _image(call: NodeProto, packing: NodeProto, graph: Graph) -> _Image | None:
    """What ``packing`` packs the positions of, with the levels that ``call`` says; None if it was packed already."""
    levels = _levels(call, graph.name(packing.input[0]), graph)
    if levels is None:
        return None
    about = _attributes(packing)
    kernel, strides, output = (about[name] for name in ("kernel_shape", "strides", "output_hw"))
    padding = graph.constant(np.array(about["pads"], dtype=np.int64))
    padded = graph.derive(call, "Pad", [levels, padding, graph.constant(np.array(0, dtype=np.int8))])
    samples, height, width, _ = graph.shape(padded)
    rows, columns = (
        np.arange(extent)[:, None] * stride + np.arange(taps)
        for extent, stride, taps in zip(output, strides, kernel, strict=True)
    )  # [OH, KH], [OW, KW]
    places = rows[:, None, :, None] * width + columns[None, :, None, :]
    every = np.arange(samples).reshape(-1, 1, 1, 1, 1) * height * width + places
    return _Image(padded, list(kernel), every.reshape(-1, math.prod(kernel)))


def _levels(call: NodeProto, words: str, graph: Graph) -> str | None:
    """The levels of packed words [N, H, W, B * words] int32, int8 [N, H, W, C]; None where they are not known."""
    about = _attributes(call)
    planes, channels = about.get("bits", 1), about["in_channels"]
    factor, first = (about["factor"], about["first"]) if "bits" in about else (2, -1)  # without planes they are signs
    if largest_code(planes) > _LARGEST or (bits := bits_of(words, graph)) is None:
        return None
    leading = graph.shape(bits)[:3]
    if planes == 1 and "bits" not in about:
        whole = _reshape(call, bits, (*leading, -1), graph)
        signs = [graph.constant(np.array(sign, dtype=np.float32)) for sign in (1, -1)]
        found = graph.derive(call, "Where", [_front(call, whole, channels, 3, graph), *signs])
        return graph.derive(call, "Cast", [found], to=int(TensorProto.INT8))
    codes = codes_of(call, _apart(call, bits, planes, graph), 3, graph)
    if codes is None:
        return None
    numbers = graph.derive(call, "Cast", [_front(call, codes, channels, 3, graph)], to=int(TensorProto.INT8))
    if (factor, first) == (1, 0):
        return numbers
    wide = graph.derive(call, "Cast", [numbers], to=int(TensorProto.FLOAT))
    scaled = graph.derive(call, "Mul", [wide, graph.constant(np.array(factor, dtype=np.float32))])
    moved = graph.derive(call, "Add", [scaled, graph.constant(np.array(first, dtype=np.float32))])
    return graph.derive(call, "Cast", [moved], to=int(TensorProto.INT8))


def _apart(call: NodeProto, bits: str, planes: int, graph: Graph) -> str:
    """The bits [N, H, W, B * words, 32] as [N, H, W, B, 32 * words]; chosen samples are chosen of that."""
    chosen = graph.producers.get(bits)
    if chosen is not None and chosen.op_type == "Gather" and _attributes(chosen).get("axis", 0) == 0:
        whole = _apart(call, chosen.input[0], planes, graph)
        return graph.derive(call, "Gather", [whole, chosen.input[1]], axis=0)
    return _reshape(call, bits, (*graph.shape(bits)[:3], planes, -1), graph)


def _weight_grad(call: NodeProto, image: _Image, graph: Graph) -> str | None:
    """[K, C, KH, KW] int32: the codes of gradients times the levels that each tap meets, summed over positions."""
    bits = bits_of(graph.name(call.input[0]), graph)  # [W, G, K, 32]
    if bits is None:
        return None
    words, width, kept, _ = graph.shape(bits)
    by_channel = graph.derive(call, "Transpose", [bits], perm=[1, 2, 0, 3])
    codes = codes_of(call, _reshape(call, by_channel, (width, kept, words * WORD), graph), 0, graph)
    if codes is None or graph.element_type(codes) != TensorProto.UINT8:
        return None
    positions, taps = image.places.shape
    channels = graph.shape(image.levels)[-1]
    flat = _reshape(call, image.levels, (-1, channels), graph)
    met = graph.derive(call, "Gather", [flat, graph.constant(image.places)], axis=0)  # [P, T, C]
    rows = _reshape(call, met, (positions, taps * channels), graph)
    sums = graph.derive(call, "MatMulInteger", [_front(call, codes, positions, 1, graph), rows])  # [K, T * C]
    turned = graph.derive(call, "Transpose", [_reshape(call, sums, (kept, taps, channels), graph)], perm=[0, 2, 1])
    return _reshape(call, turned, (kept, channels, *image.kernel), graph)


def _sums(call: NodeProto, image: _Image, graph: Graph) -> str | None:
    """[C, KH, KW] int32: the levels that each tap meets, summed over samples and then over places."""
    samples, height, width, channels = graph.shape(image.levels)
    numbers = graph.derive(call, "Cast", [image.levels], to=int(TensorProto.INT32))
    first, second = (graph.constant(np.array([axis])) for axis in (0, 1))
    by_place = graph.derive(call, "ReduceSum", [numbers, first], keepdims=0)
    flat = _reshape(call, by_place, (height * width, channels), graph)
    places = graph.constant(np.ascontiguousarray(image.places[: len(image.places) // samples].T))
    met = graph.derive(call, "Gather", [flat, places], axis=0)  # [T, OH * OW, C]
    sums = graph.derive(call, "ReduceSum", [met, second], keepdims=0)
    return _reshape(call, graph.derive(call, "Transpose", [sums], perm=[1, 0]), (channels, *image.kernel), graph)


_PRODUCTS: Mapping[str, Callable[[NodeProto, _Image, Graph], str | None]] = {
    "bitplane_weight_grad": _weight_grad,
    "level_sums": _sums,
    "level_weight_grad": _weight_grad,
    "position_sums": _sums,
}
"""By op: what it is of an image; its last operand are the positions."""


def _front(source: NodeProto, value: str, count: int, axis: int, graph: Graph) -> str:
    """The first ``count`` elements along ``axis``."""
    begin, end, axes = (graph.constant(np.array([number])) for number in (0, count, axis))
    return graph.derive(source, "Slice", [value, begin, end, axes])


def _reshape(source: NodeProto, value: str, shape: tuple[int, ...], graph: Graph) -> str:
    return graph.derive(source, "Reshape", [value, graph.constant(np.array(shape, dtype=np.int64))])


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
