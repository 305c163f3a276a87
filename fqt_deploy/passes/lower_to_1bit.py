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

A linear layer is a 1x1 convolution over an image of one row. Gradients that no quantizer touches stay in fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.graph import Emitter, Stage, TrainingGraph, replace, shape
from fqt_deploy.passes.annotate_layers import products_of
from fqt_deploy.passes.binarize_forward import convolution_weight
from fqt_deploy.passes.pass_base import Pass

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
        """Rewrite all three directions."""
        rewrites = {"forward": _forward, "input_grad": _input_grad, "weight_grad": _weight_grad}
        changed = False
        for direction, rewrite in rewrites.items():
            for node in products_of(graph, direction):
                changed |= rewrite(graph, node)
        return changed


def _geometry(samples_last: list[int], weight: list[int], arguments: tuple[Any, ...]) -> _Geometry:
    """Geometry of a product whose image-side operand has shape ``samples_last``."""
    if len(samples_last) == 2:
        return _Geometry([1, 1, *samples_last], [1, 1], [1, 1], [0, 0])
    return _Geometry(samples_last, weight[2:], list(arguments[0]), list(arguments[1]))


def _viewed(emit: Emitter, node: fx.Node, extents: list[int]) -> fx.Node:
    return node if shape(node) == extents else emit(aten.view.default, node, extents)


def _float(emit: Emitter, node: fx.Node) -> fx.Node:
    return emit(aten._to_copy.default, node, dtype=torch.float32)


def _forward(graph: TrainingGraph, node: fx.Node) -> bool:
    x, w = node.args[0].args[0], node.args[1].args[0]  # type: ignore[union-attr]
    emit = Emitter(graph, node, role="forward")
    geometry = _geometry(shape(x), shape(w), node.args[2:])  # type: ignore[arg-type]
    out_channels, in_channels = shape(w)[:2]  # type: ignore[arg-type]
    bits = emit(fqt.pack_signs.default, _viewed(emit, x, geometry.image))  # type: ignore[arg-type]
    weight_bits = emit(fqt.pack_weight.default, convolution_weight(emit, w))  # type: ignore[arg-type]
    z = emit(
        fqt.binary_conv2d.default, bits, weight_bits, in_channels, out_channels,
        geometry.kernel, geometry.stride, geometry.padding,
    )  # fmt: skip
    replace(graph, node, _viewed(emit, _float(emit, z), shape(node)))
    return True


def _quantizer(operand: Any) -> fx.Node | None:
    """The ``dequantize`` behind a gradient operand, if it was quantized."""
    if operand.target is aten.view.default:
        operand = operand.args[0]
    return operand if operand.target is fqt.dequantize.default else None


def _input_grad(graph: TrainingGraph, node: fx.Node) -> bool:
    g, w = node.args[0], node.args[1].args[0]  # type: ignore[union-attr]
    dequantize = _quantizer(g)
    if dequantize is None:
        return False
    codes, scale, zero, _ = dequantize.args
    emit = Emitter(graph, node, role="input_grad")
    bits = codes.args[-1]  # type: ignore[union-attr]
    planes = emit(fqt.quantize_pack_samples.default, *codes.args)  # type: ignore[union-attr]
    out_channels, in_channels = shape(w)[:2]  # type: ignore[arg-type]
    samples, positions, _ = shape(codes)  # type: ignore[arg-type]
    if len(shape(g)) == 4:  # type: ignore[arg-type]
        input_hw, stride, padding = (list(a) for a in node.args[2:])  # type: ignore[union-attr,arg-type]
        output_hw, kernel = shape(g)[1:3], shape(w)[2:]  # type: ignore[arg-type]
    else:
        input_hw, output_hw, kernel, stride, padding = [1, positions], [1, positions], [1, 1], [1, 1], [0, 0]
    planes = _viewed(emit, planes, [samples, *output_hw, bits, shape(planes)[-1]])
    forward_bits = emit(fqt.pack_weight.default, convolution_weight(emit, w))  # type: ignore[arg-type]
    weight_bits = emit(
        fqt.transpose_packed_weight.default, forward_bits, in_channels, out_channels, kernel[0] * kernel[1]
    )
    product = emit(
        fqt.bitplane_conv2d_input_grad.default, planes, weight_bits, in_channels, out_channels, input_hw,
        kernel, stride, padding,
    )  # fmt: skip
    taps = emit(
        fqt.tap_sums.default, weight_bits, in_channels, out_channels, input_hw, output_hw, kernel, stride, padding
    )
    per_sample = [samples, 1, 1, 1]
    scaled = emit(aten.mul.Tensor, _float(emit, product), emit(aten.view.default, scale, per_sample))
    offset = emit(aten.mul.Tensor, _float(emit, taps), emit(aten.view.default, zero, per_sample))
    replace(graph, node, _viewed(emit, emit(aten.add.Tensor, scaled, offset), shape(node)))
    return True


def _sign_bits(emit: Emitter, signs: fx.Node) -> fx.Node:
    """Packed [N, H, W, words] of a product's sign operand; kept samples are gathered as bits, after packing."""
    if signs.target is fqt.sign.default:
        x: Any = signs.args[0]
        extents = shape(x)
        return emit(fqt.pack_signs.default, x if len(extents) == 4 else emit(aten.view.default, x, [1, 1, *extents]))
    if signs.target is fqt.gather_rows.default:
        return emit(fqt.gather_rows.default, _sign_bits(emit, signs.args[0]), signs.args[1])  # type: ignore[arg-type]
    gathered: Any = signs.args[
        0
    ]  # rows of a linear layer: view(gather_rows(view(sign(x), [N, rows, C])), [K * rows, C])
    grouped, index = gathered.args
    bits = _sign_bits(emit, grouped.args[0])
    samples, rows, _ = shape(grouped)
    words = shape(bits)[-1]
    kept = emit(fqt.gather_rows.default, emit(aten.view.default, bits, [samples, rows, words]), index)
    return emit(aten.view.default, kept, [1, 1, shape(signs)[0], words])


def _weight_grad(graph: TrainingGraph, node: fx.Node) -> bool:
    dequantize = _quantizer(node.args[1])
    if dequantize is None:
        return False
    x: fx.Node = node.args[0]  # type: ignore[assignment]
    codes, scale, zero, _ = dequantize.args
    emit = Emitter(graph, node, role="weight_grad")
    taps_shape = shape(node)[2:] if len(shape(node)) == 4 else [1, 1]
    geometry = _geometry(shape(x), [0, 0, *taps_shape], node.args[3:])
    output_hw = shape(node.args[1])[1:3] if len(shape(x)) == 4 else [1, shape(x)[0]]  # type: ignore[arg-type]
    in_channels = shape(x)[-1]  # type: ignore[arg-type]
    planes = emit(fqt.quantize_pack_channels.default, *codes.args)  # type: ignore[union-attr]
    bits = _sign_bits(emit, x)
    positions = emit(
        fqt.pack_positions.default, bits, in_channels, geometry.kernel, geometry.stride, geometry.padding, output_hw
    )
    product = emit(fqt.bitplane_weight_grad.default, planes, positions, in_channels, geometry.kernel)
    sums = emit(fqt.position_sums.default, positions, in_channels, geometry.kernel)
    scatter = next((u for u in node.users if u.target is fqt.scatter_rows.default), None)
    slot = scatter.args[1] if scatter is not None else None
    kept, *weight = shape(product)
    count = math.prod(weight)  # flat, as the optimizer's kernel wants it
    result = emit(
        fqt.dequantize_weight_grad.default,
        emit(aten.view.default, product, [kept, count]), scale, zero, emit(aten.view.default, sums, [count]), slot,
    )  # fmt: skip
    if scatter is not None:  # the scatter of pruned channels is part of the dequantization
        replace(graph, scatter, _viewed(emit, result, shape(scatter)))
        graph.graph.erase_node(node)
    else:
        replace(graph, node, _viewed(emit, result, shape(node)))
    return True
