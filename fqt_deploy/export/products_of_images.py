"""Products on bits as integer products, of the images that the bits were packed of.

Compiled kernels want bits in words: planes of activations and of gradients, signs of weights, and for weight gradients
rows of what each tap meets at each position (``pack_positions``). ONNX Runtime multiplies integers of eight bits faster
than floats, in WebAssembly several times. So where codes or signs are known from before they were packed, the rows that
a convolution reads are gathered from the image as it lies, and one ``MatMulInteger`` takes levels in place of planes.
All sums are of integers: the results are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fqt_deploy.export.bits_of_words import Graph, bits_of
from fqt_deploy.export.codes_of_planes import codes_of
from fqt_deploy.ops.lib.levels import largest_code
from fqt_deploy.ops.lib.packed_words import PANEL, WORD

Array = NDArray[Any]

_LARGEST_CODE = 255
_LARGEST = (2**15 - 1) // (2 * _LARGEST_CODE)
"""The largest level beside a code of eight bits: ONNX Runtime may add two products in 16 bits, which saturate."""


def product(call: NodeProto, calls: Mapping[str, NodeProto], graph: Graph) -> str | None:
    """The value of ``call`` as an integer product; None if it is something else, or its bits came in another way.

    Args:
        call: a call of a function of domain ``ai.fqt``.
        calls: the calls before it, by their results.
        graph: the graph that it is added to.
    """
    compute = _PRODUCTS.get(call.op_type)
    return None if compute is None else compute(call, calls, graph)


def _convolution(call: NodeProto, _calls: Mapping[str, NodeProto], graph: Graph) -> str | None:
    """[N, OH, OW, O]: levels of activations times signs; what lies around the image is the zero point."""
    about = _attributes(call)
    kernel, strides, pads = (about[name] for name in ("kernel_shape", "strides", "pads"))
    factor, first = _grid(call)
    _, _, _, *planes, _words = graph.shape(graph.name(call.input[0]))
    if factor * largest_code(sum(planes) or 1) > _LARGEST_CODE:
        return None
    signs = _signs(call, about["out_channels"], about["in_channels"], math.prod(kernel), graph)
    codes = _image(call, call.input[0], sum(planes), about["in_channels"], graph)
    if signs is None or codes is None:
        return None
    if factor == 2:
        one = graph.constant(np.array(1, dtype=np.uint8))
        codes = graph.derive(call, "BitShift", [codes, one], direction="LEFT")
    zero = np.array(-first, dtype=np.uint8)
    padded = _padded(call, codes, pads, zero, graph)
    samples, height, width, _channels = graph.shape(padded)
    places = _places([height, width], kernel, strides)
    rows = _columns(call, padded, places, graph)
    operands = [rows, signs, graph.constant(zero)] if first else [rows, signs]
    sums = graph.derive(call, "MatMulInteger", operands)
    output = [(e - k) // s + 1 for e, k, s in zip((height, width), kernel, strides, strict=True)]
    whole = _reshape(call, sums, (samples, *output, about["out_channels"]), graph)
    return graph.derive(call, "Cast", [whole], to=about["to"])


def _input_grad(call: NodeProto, _calls: Mapping[str, NodeProto], graph: Graph) -> str | None:
    """[N, H, W, I] int32: codes of gradients times signs, each where the tap has read."""
    about = _attributes(call)
    kernel, strides, pads, missing = (about[name] for name in ("kernel_shape", "strides", "pads", "output_padding"))
    *_, planes, _words = graph.shape(graph.name(call.input[0]))
    signs = _signs(call, about["in_channels"], about["out_channels"], math.prod(kernel), graph)
    codes = _image(call, call.input[0], planes, about["out_channels"], graph)
    if signs is None or codes is None:
        return None
    samples, height, width, _channels = graph.shape(codes)
    geometry = list(zip((height, width), kernel, strides, pads[:2], pads[2:], missing, strict=True))
    extents = [(e - 1) * s + k - before - behind + more for e, k, s, before, behind, more in geometry]
    below = _padded(call, codes, [0, 0, 1, 0], np.array(0, dtype=np.uint8), graph)  # taps that no output has read
    steps = []
    for extent, (outputs, taps, stride, before, _behind, _more) in zip(extents, geometry, strict=True):
        ahead = np.arange(extent)[:, None] + before - np.arange(taps)
        at = ahead // stride
        steps.append(np.where((ahead % stride == 0) & (at >= 0) & (at < outputs), at, -1))
    rows, columns = steps[0][:, None, :, None], steps[1][None, :, None, :]
    places = np.where((rows >= 0) & (columns >= 0), rows * width + columns, height * width)
    sums = graph.derive(
        call, "MatMulInteger", [_columns(call, below, places.reshape(-1, math.prod(kernel)), graph), signs]
    )
    return _reshape(call, sums, (samples, *extents, about["in_channels"]), graph)


def _weight_grad(call: NodeProto, calls: Mapping[str, NodeProto], graph: Graph) -> str | None:
    """[K, C, KH, KW] int32: the codes of gradients times the levels that each tap meets, summed over positions."""
    levels = _levels_of_positions(call, calls, graph)
    bits = bits_of(graph.name(call.input[0]), graph)  # [W, G, K, 32]
    if levels is None or bits is None:
        return None
    image, kernel, places = levels
    words, width, kept, _ = graph.shape(bits)
    by_channel = graph.derive(call, "Transpose", [bits], perm=[1, 2, 0, 3])
    codes = codes_of(call, _reshape(call, by_channel, (width, kept, words * WORD), graph), 0, graph)
    if codes is None or graph.element_type(codes) != TensorProto.UINT8:
        return None
    rows = _columns(call, image, places, graph)
    positions, _ = graph.shape(rows)
    sums = graph.derive(call, "MatMulInteger", [_front(call, codes, positions, 1, graph), rows])  # [K, T * C]
    channels = graph.shape(image)[-1]
    by_tap = _reshape(call, sums, (kept, math.prod(kernel), channels), graph)
    return _reshape(call, graph.derive(call, "Transpose", [by_tap], perm=[0, 2, 1]), (kept, channels, *kernel), graph)


def _sums(call: NodeProto, calls: Mapping[str, NodeProto], graph: Graph) -> str | None:
    """[C, KH, KW] int32: the levels that each tap meets, summed over samples and then over places."""
    levels = _levels_of_positions(call, calls, graph)
    if levels is None:
        return None
    image, kernel, places = levels
    _, height, width, channels = graph.shape(image)
    numbers = graph.derive(call, "Cast", [image], to=int(TensorProto.INT32))
    first, second = (graph.constant(np.array([axis])) for axis in (0, 1))
    by_place = graph.derive(call, "ReduceSum", [numbers, first], keepdims=0)
    flat = _reshape(call, by_place, (height * width, channels), graph)
    met = graph.derive(call, "Gather", [flat, graph.constant(np.ascontiguousarray(places.T))], axis=0)  # [T, P, C]
    sums = graph.derive(call, "ReduceSum", [met, second], keepdims=0)
    return _reshape(call, graph.derive(call, "Transpose", [sums], perm=[1, 0]), (channels, *kernel), graph)


_PRODUCTS: Mapping[str, Callable[[NodeProto, Mapping[str, NodeProto], Graph], str | None]] = {
    "binary_conv2d": _convolution,
    "bitplane_conv2d_input_grad": _input_grad,
    "bitplane_weight_grad": _weight_grad,
    "level_conv2d": _convolution,
    "level_sums": _sums,
    "level_weight_grad": _weight_grad,
    "position_sums": _sums,
}


def _grid(call: NodeProto) -> tuple[int, int]:
    """How a level comes of its code: the first times it, plus the second; of a bit, where an op reads signs."""
    about = _attributes(call)
    return (int(about["factor"]), int(about["first"])) if "factor" in about else (2, -1)


def _levels_of_positions(
    call: NodeProto, calls: Mapping[str, NodeProto], graph: Graph
) -> tuple[str, list[int], Array] | None:
    """What the taps met whose packed positions ``call`` reads last: int8 [N, H, W, C], the kernel, and its places.

    None if they were packed in another way, or their levels are not known or too large.
    """
    packing = calls.get(call.input[-1])
    if packing is None or packing.op_type != "pack_positions":
        return None
    about, channels = _attributes(packing), _attributes(call)["in_channels"]
    (factor, first), planes = _grid(call), _attributes(call).get("bits", 0)
    codes = _image(call, packing.input[0], planes, channels, graph)
    if codes is None or largest_code(planes or 1) > _LARGEST:
        return None
    levels = graph.derive(call, "Cast", [codes], to=int(TensorProto.INT8))
    if first:
        wide = graph.derive(call, "Cast", [codes], to=int(TensorProto.FLOAT))
        scaled = graph.derive(call, "Mul", [wide, graph.constant(np.array(factor, dtype=np.float32))])
        moved = graph.derive(call, "Add", [scaled, graph.constant(np.array(first, dtype=np.float32))])
        levels = graph.derive(call, "Cast", [moved], to=int(TensorProto.INT8))
    around = [*about["pads"][1:3], *about["pads"][5:7]]
    padded = _padded(call, levels, around, np.array(0, dtype=np.int8), graph)
    kernel = list(about["kernel_shape"])
    return padded, kernel, _places(graph.shape(padded)[1:3], kernel, about["strides"])


def _image(call: NodeProto, words: str, planes: int, channels: int, graph: Graph) -> str | None:
    """The codes that were packed as ``words`` [N, H, W, ...] int32: uint8 [N, H, W, C]; None where they are not known.

    Without ``planes`` they are the bits.
    """
    bits = bits_of(graph.name(words), graph)
    if bits is None:
        return None
    if planes:
        codes = codes_of(call, _apart(call, bits, planes, graph), 3, graph)
    else:
        whole = _reshape(call, bits, (*graph.shape(bits)[:3], -1), graph)
        codes = graph.derive(call, "Cast", [whole], to=int(TensorProto.UINT8))
    if codes is None or graph.element_type(codes) != TensorProto.UINT8:
        return None
    return _front(call, codes, channels, 3, graph)


def _apart(call: NodeProto, bits: str, planes: int, graph: Graph) -> str:
    """The bits of [N, H, W, B * words] or [N, H, W, B, words] as [N, H, W, B, 32 * words].

    Where they are those of chosen samples, samples are chosen of that.
    """
    chosen = graph.producers.get(bits)
    if chosen is not None and chosen.op_type == "Gather" and _attributes(chosen).get("axis", 0) == 0:
        whole = _apart(call, chosen.input[0], planes, graph)
        return graph.derive(call, "Gather", [whole, chosen.input[1]], axis=0)
    return _reshape(call, bits, (*graph.shape(bits)[:3], planes, -1), graph)


def _signs(call: NodeProto, rows: int, columns: int, taps: int, graph: Graph) -> str | None:
    """The signs of packed weights [panels, T * words, 16], the second operand: int8 [T * columns, rows]."""
    bits = bits_of(graph.name(call.input[1]), graph)
    if bits is None:
        return None
    by_row = graph.derive(call, "Transpose", [bits], perm=[0, 2, 1, 3])
    panels = graph.shape(bits)[0]
    whole = _reshape(call, by_row, (panels * PANEL, taps, -1), graph)
    kept = _front(call, _front(call, whole, rows, 0, graph), columns, 2, graph)
    turned = graph.derive(call, "Transpose", [kept], perm=[1, 2, 0])
    flat = _reshape(call, turned, (taps * columns, rows), graph)
    one, minus = (graph.constant(np.array(sign, dtype=np.float32)) for sign in (1, -1))
    return graph.derive(call, "Cast", [graph.derive(call, "Where", [flat, one, minus])], to=int(TensorProto.INT8))


def _places(extents: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> Array:
    """The place in an image of each tap at each position: [OH * OW, KH * KW] int64."""
    rows, columns = (
        np.arange((extent - taps) // stride + 1)[:, None] * stride + np.arange(taps)
        for extent, taps, stride in zip(extents, kernel, strides, strict=True)
    )
    places = rows[:, None, :, None] * extents[1] + columns[None, :, None, :]
    return places.reshape(-1, math.prod(kernel))


def _columns(call: NodeProto, image: str, places: Array, graph: Graph) -> str:
    """What each tap reads at each position of each sample: [N, H, W, C] -> [N * P, T * C]."""
    samples, height, width, channels = graph.shape(image)
    positions, taps = places.shape
    flat = _reshape(call, image, (samples * height * width, channels), graph)
    if taps == 1 and np.array_equal(places[:, 0], np.arange(height * width)):
        return flat
    begins = graph.constant((np.arange(samples) * height * width).reshape(-1, 1, 1))
    index = graph.derive(call, "Add", [begins, graph.constant(places)])  # a constant, if it is not large
    met = graph.derive(call, "Gather", [flat, index], axis=0)
    return _reshape(call, met, (samples * positions, taps * channels), graph)


def _padded(call: NodeProto, image: str, pads: Sequence[int], filler: Array, graph: Graph) -> str:
    """An image with more rows and columns: above, left, below, right."""
    top, left, bottom, right = pads
    amounts = graph.constant(np.array([0, top, left, 0, 0, bottom, right, 0]))
    return graph.derive(call, "Pad", [image, amounts, graph.constant(filler)])


def _front(source: NodeProto, value: str, count: int, axis: int, graph: Graph) -> str:
    """The first ``count`` elements along ``axis``."""
    begin, end, axes = (graph.constant(np.array([number])) for number in (0, count, axis))
    return graph.derive(source, "Slice", [value, begin, end, axes])


def _reshape(source: NodeProto, value: str, shape: tuple[int, ...], graph: Graph) -> str:
    return graph.derive(source, "Reshape", [value, graph.constant(np.array(shape, dtype=np.int64))])


def _attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes by name; a scalar tensor is its number."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {
        name: numpy_helper.to_array(value).item() if isinstance(value, TensorProto) else value
        for name, value in values.items()
    }
