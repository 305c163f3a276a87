"""Lower the products of binarized layers to packed bits.

Before::

    %z  = fqt.conv2d(fqt.sign(%x), fqt.sign(%w), ...)
    %gx = fqt.conv2d_input_grad(view(fqt.dequantize(%codes, %scale, %zero, 0)), fqt.sign(%w), ...)
    %gw = fqt.conv2d_weight_grad(fqt.sign(%x), view(fqt.dequantize(%channel_codes, %scale, %zero, 2)), ...)

After::

    %z  = float(fqt.binary_conv2d(fqt.pack_signs(%x), fqt.pack_weight(%w), ...))
    %gx = float(fqt.bitplane_conv2d_input_grad(%planes, fqt.transpose_packed_weight(...), ...)) * %scale
          + float(fqt.tap_sums(...)) * %zero
    %gw = fqt.dequantize_weight_grad(fqt.bitplane_weight_grad(%channel_planes, fqt.pack_positions(...)), ...)

Levels of several bits, ``fqt.activation_levels``, take the same way through ``pack_levels``, ``level_conv2d``,
``level_weight_grad`` and ``level_sums``. Those of a weight are planes, each of them packed as a weight of signs is
(``pack_weight_plane``), with an axis in front of the others.

A linear layer is a 1x1 convolution over an image of one row. Gradients that no quantizer touches stay in fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.call import Call, call_of, source_of
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import Emitter, Stage, TrainingGraph, replace, shape
from fqt_deploy.ops.lib.levels import largest_code, plane_channels
from fqt_deploy.passes.annotate_layers import products_of
from fqt_deploy.passes.binarize_forward import convolution_weight
from fqt_deploy.passes.pass_base import Pass
from fqt_deploy.passes.quantized_value import QuantizedValue

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class _Geometry:
    """A product as a convolution: NHWC images, kernel, stride, padding."""

    image: list[int]
    kernel: list[int]
    stride: list[int]
    padding: list[int]


@dataclass(frozen=True)
class LowerTo1Bit(Pass):
    """Replace signs and quantized gradients by bits, and their products by popcounts."""

    name = "lower-to-1bit"
    produces = Stage.LOWERED

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite the products of all three directions, and return whether there was one."""
        rewrites = {"forward": _forward, "input_grad": _input_grad, "weight_grad": _weight_grad}
        changed = False
        for direction, rewrite in rewrites.items():
            for node in products_of(graph, direction):
                changed |= rewrite(graph, node)
        return changed


def _geometry(image: list[int], weight: list[int], call: Call) -> _Geometry:
    """Geometry of a product whose image-side operand has shape ``image``."""
    if len(image) == 2:
        return _Geometry([1, 1, *image], [1, 1], [1, 1], [0, 0])
    return _Geometry(image, weight[2:], list(call.stride), list(call.padding))


def _viewed(emit: Emitter, node: fx.Node, extents: list[int]) -> fx.Node:
    return node if shape(node) == extents else emit(aten.view.default, node, extents)


def _float(emit: Emitter, node: fx.Node) -> fx.Node:
    return emit(aten._to_copy.default, node, dtype=torch.float32)


def _weight_planes(emit: Emitter, quantized: fx.Node) -> list[fx.Node]:
    """The planes of a weight, each packed, the lowest first: one of signs, or those of levels."""
    if quantized.target is fqt.sign.default:
        return [emit(fqt.pack_weight.default, convolution_weight(emit, call_of(quantized).x))]
    levels, scaled = call_of(quantized), call_of(call_of(quantized).x)
    reciprocals = source_of(scaled.other)
    weight = convolution_weight(emit, scaled.self)
    return [
        emit(fqt.pack_weight_plane.default, weight, reciprocals, levels.bits, plane) for plane in range(levels.bits)
    ]


def _together(emit: Emitter, planes: list[fx.Node]) -> fx.Node:
    """The planes of a packed weight behind each other, along an axis of their own; a single one stays as it is."""
    if len(planes) == 1:
        return planes[0]
    return emit(aten.view.default, emit(aten.cat.default, planes, 0), [len(planes), *shape(planes[0])])


def sum_of_planes(emit: Emitter, products: list[fx.Node]) -> fx.Node:
    """The sum of integers that were computed of each plane of a weight, the lowest first: each counts twice the last.

    Where there are several, it is in int32.
    """
    if len(products) == 1:
        return products[0]
    wide = [emit(aten._to_copy.default, product, dtype=torch.int32) for product in products]
    total = wide[0]
    for plane, product in enumerate(wide[1:], start=1):
        total = emit(aten.add.Tensor, total, emit(aten.mul.Tensor, product, 1 << plane))
    return total


def _forward(graph: TrainingGraph, node: fx.Node) -> bool:
    call = call_of(node)
    x = source_of(call.x)
    emit = Emitter(graph, node, role="forward")
    geometry = _geometry(shape(x), shape(call.w), call)
    out_channels, in_channels = shape(call.w)[:2]
    weight_bits = _together(emit, _weight_planes(emit, call.w))
    layer = (in_channels, out_channels, geometry.kernel, geometry.stride, geometry.padding)
    image, grid = _viewed(emit, x, geometry.image), node.meta["record"].grid
    bits = 1 if grid is None else grid.bits
    _check_weight_sums_fit(node, "the layer", math.prod(shape(call.w)[1:]), (f"{bits}-bit activations", bits))
    if grid is None:
        z = emit(fqt.binary_conv2d.default, emit(fqt.pack_signs.default, image), weight_bits, *layer)
    else:
        planes = emit(fqt.pack_levels.default, image, grid.spacing, grid.bits, grid.signed)
        z = emit(fqt.level_conv2d.default, planes, weight_bits, *layer, grid.signed)
    replace(graph, node, _viewed(emit, _float(emit, z), shape(node)))
    return True


def _input_grad(graph: TrainingGraph, node: fx.Node) -> bool:
    call = call_of(node)
    quantized = QuantizedValue.of(call.g)
    if quantized is None:
        return False
    emit = Emitter(graph, node, role="input_grad")
    bits = quantized.quantizer.bits
    planes = emit(fqt.quantize_pack_samples.default, *quantized.quantizer.values().values())
    out_channels, in_channels = shape(call.w)[:2]
    samples, positions, _ = shape(quantized.codes)
    if len(shape(call.g)) == 4:
        input_hw, stride, padding = list(call.input_hw), list(call.stride), list(call.padding)
        output_hw, kernel = shape(call.g)[1:3], shape(call.w)[2:]
    else:
        input_hw, output_hw, kernel, stride, padding = [1, positions], [1, positions], [1, 1], [1, 1], [0, 0]
    planes = _viewed(emit, planes, [samples, *output_hw, bits, shape(planes)[-1]])
    channels = (in_channels, out_channels)
    terms = math.prod(shape(call.w)) // in_channels
    _check_weight_sums_fit(node, "the activation gradient", terms, (f"{bits}-bit gradients", bits))
    turned = [
        emit(fqt.transpose_packed_weight.default, plane, *channels, kernel[0] * kernel[1])
        for plane in _weight_planes(emit, call.w)
    ]
    product = emit(
        fqt.bitplane_conv2d_input_grad.default, planes, _together(emit, turned), *channels, input_hw,
        kernel, stride, padding,
    )  # fmt: skip
    layer = (*channels, input_hw, output_hw, kernel, stride, padding)
    taps = sum_of_planes(emit, [emit(fqt.tap_sums.default, plane, *layer) for plane in turned])
    per_sample = [samples, 1, 1, 1]
    scaled = emit(aten.mul.Tensor, _float(emit, product), emit(aten.view.default, quantized.scale, per_sample))
    offset = emit(aten.mul.Tensor, _float(emit, taps), emit(aten.view.default, quantized.zero, per_sample))
    replace(graph, node, _viewed(emit, emit(aten.add.Tensor, scaled, offset), shape(node)))
    return True


def _sign_bits(emit: Emitter, signs: fx.Node) -> fx.Node:
    """Packed [N, H, W, words] of a product's signs or levels; kept samples are gathered as bits, after packing.

    The words of levels are those of one plane after another.
    """
    if signs.target in (fqt.sign.default, fqt.activation_levels.default):
        call, extents = call_of(signs), shape(signs)
        image = call.x if len(extents) == 4 else emit(aten.view.default, call.x, [1, 1, *extents])
        if signs.target is fqt.sign.default:
            return emit(fqt.pack_signs.default, image)
        planes = emit(fqt.pack_levels.default, image, call.spacing, call.bits, call.signed)
        return emit(aten.view.default, planes, [*shape(image)[:-1], call.bits * shape(planes)[-1]])
    if signs.target is fqt.gather_rows.default:
        gathered = call_of(signs)
        return emit(fqt.gather_rows.default, _sign_bits(emit, gathered.x), gathered.index)
    # rows of a linear layer: view(gather_rows(view(sign(x), [N, rows, C])), [K * rows, C])
    gathered = call_of(source_of(signs))
    grouped, index = gathered.x, gathered.index
    bits = _sign_bits(emit, source_of(grouped))
    samples, rows, _ = shape(grouped)
    words = shape(bits)[-1]
    kept = emit(fqt.gather_rows.default, emit(aten.view.default, bits, [samples, rows, words]), index)
    return emit(aten.view.default, kept, [1, 1, shape(signs)[0], words])


def _codes_times_input(
    emit: Emitter, node: fx.Node, planes: fx.Node, geometry: _Geometry, output_hw: list[int]
) -> tuple[list[tuple[int, fx.Node]], fx.Node]:
    """The product of gradient codes with the signs or levels of a layer's input, and the sums of these alone.

    The product is a sum of digits: the lowest plane of each, and the product of its codes.
    """
    x, grid = call_of(node).x, node.meta["record"].grid
    channels = shape(x)[-1]
    rows = channels if grid is None else grid.bits * plane_channels(channels)
    layer = (rows, geometry.kernel, geometry.stride, geometry.padding, output_hw)
    positions = emit(fqt.pack_positions.default, _sign_bits(emit, x), *layer)
    if grid is None:
        product = emit(fqt.bitplane_weight_grad.default, planes, positions, channels, geometry.kernel)
        return [(0, product)], emit(fqt.position_sums.default, positions, channels, geometry.kernel)
    bits, levels = shape(planes)[1], (channels, geometry.kernel, grid.bits, grid.signed)
    width = _digit_bits(node, bits, grid.bits)
    digits = [
        (first, planes if width == bits else emit(aten.slice.Tensor, planes, 1, first, min(first + width, bits)))
        for first in range(0, bits, width)
    ]
    return (
        [(first, emit(fqt.level_weight_grad.default, digit, positions, *levels)) for first, digit in digits],
        emit(fqt.level_sums.default, positions, *levels),
    )


def _digit_bits(node: fx.Node, gradient_bits: int, bits: int) -> int:
    """The most bits of a gradient's digit whose sums over all positions fit 32 bits: 4 of 8 from 33,026 positions on.

    FQT205 if those of a single bit may not fit.
    """
    positions = math.prod(shape(call_of(node).g)[:-1])
    kinds = ("gradients of any bits", 1), (f"{bits}-bit activations", bits)
    _check_fit(node, f"the weight gradient sums {positions}", positions, kinds, "make the batch smaller")
    widths = [width for width in (gradient_bits, 4, 2, 1) if width <= gradient_bits]
    return next(width for width in widths if positions * largest_code(width) * largest_code(bits) < 2**31)


def _check_weight_sums_fit(node: fx.Node, what: str, terms: int, codes: tuple[str, int]) -> None:
    """FQT205 if a sum of so many products with a weight might not fit 32 bits: 8 and 4 bits, 561,434 times."""
    bits = node.meta["record"].weight_bits
    _check_fit(node, f"{what} sums {terms}", terms, (codes, (f"{bits}-bit weights", bits)), "exclude it")


def _check_fit(node: fx.Node, what: str, terms: int, kinds: tuple[tuple[str, int], tuple[str, int]], hint: str) -> None:
    (first, bits), (second, other_bits) = kinds
    if terms * largest_code(bits) * largest_code(other_bits) >= 2**31:
        raise FqtError(
            f"{what} products of {first} and {second}, which may not fit 32 bits",
            code="FQT205",
            node=node,
            hint=f"give the layer fewer bits, with --bits or --grad-bits, or {hint}",
        )


def _weight_grad(graph: TrainingGraph, node: fx.Node) -> bool:
    call = call_of(node)
    quantized = QuantizedValue.of(call.g)
    if quantized is None:
        return False
    x = call.x
    emit = Emitter(graph, node, role="weight_grad")
    taps_shape = shape(node)[2:] if len(shape(node)) == 4 else [1, 1]
    geometry = _geometry(shape(x), [0, 0, *taps_shape], call)
    output_hw = shape(call.g)[1:3] if len(shape(x)) == 4 else [1, shape(x)[0]]
    planes = emit(fqt.quantize_pack_channels.default, *quantized.quantizer.values().values())
    products, sums = _codes_times_input(emit, node, planes, geometry, output_hw)
    scatter = next((u for u in node.users if u.target is fqt.scatter_rows.default), None)
    slot = call_of(scatter).slot if scatter is not None else None
    kept, *weight = shape(products[0][1])
    count = math.prod(weight)  # flat, as the optimizer's kernel wants it
    flat = [(first, emit(aten.view.default, product, [kept, count])) for first, product in products]
    flat_sums = emit(aten.view.default, sums, [count])
    result: fx.Node | None = None
    for first, product in flat:
        scale, zero = quantized.scale, quantized.zero
        if first:  # what lies above the lowest digit adds nothing to the zero
            scale, zero = emit(aten.mul.Scalar, scale, 2.0**first), emit(aten.mul.Scalar, zero, 0.0)
        part = emit(fqt.dequantize_weight_grad.default, product, scale, zero, flat_sums, slot)
        result = part if result is None else emit(aten.add.Tensor, result, part)
    assert result is not None
    if scatter is not None:  # the scatter of pruned channels is part of the dequantization
        replace(graph, scatter, _viewed(emit, result, shape(scatter)))
        graph.graph.erase_node(node)
    else:
        replace(graph, node, _viewed(emit, result, shape(node)))
    return True
