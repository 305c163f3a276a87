"""Make the chosen layers compute on signs, with a scale per output channel and straight-through gradients.

Before::

    %y  = fqt.conv2d(%x, %w, ...)
    %gx = fqt.conv2d_input_grad(%gy, %w, ...)
    %gw = fqt.conv2d_weight_grad(%x, %gy, ...)

After (algorithm: XNOR-Net scale, straight-through estimator)::

    %a  = fqt.weight_scale(%w)                                            # mean |w| per output channel
    %y  = fqt.conv2d(fqt.sign(%x), fqt.sign(%w), ...) * %a
    %gx = fqt.straight_through(fqt.conv2d_input_grad(%gy * %a, fqt.sign(%w), ...), %x)
    %gw = fqt.latent_weight_grad(fqt.conv2d_weight_grad(fqt.sign(%x), %gy, ...), %w, False)

Where a layer has a grid, its activations become levels, whole numbers, in the place of signs; what level 1 stands for
is a factor of the result and of the weight's gradient::

    %y  = fqt.conv2d(fqt.activation_levels(%x, ...), fqt.sign(%w), ...) * (%a * unit)
    %gx = fqt.level_straight_through(fqt.conv2d_input_grad(%gy * %a, fqt.sign(%w), ...), %x, ...)
    %gw = fqt.latent_weight_grad(fqt.conv2d_weight_grad(fqt.activation_levels(%x, ...), %gy, ...), %w, False) * unit

Where its record says so, a layer's weights are levels, too, on a signed grid that follows the mean magnitude of each
output channel; ``%a`` is then what level 1 stands for::

    %r  = aten.reciprocal(aten.clamp(fqt.weight_scale(%w) * 1.25, 2^-100))  # one over the spacing, for 2 bits
    %a  = fqt.weight_scale(%w) * 0.62
    %l  = fqt.activation_levels(%w * %r, 1.0, 2, True)                    # in the place of fqt.sign(%w)
    %gw = fqt.latent_level_grad(fqt.conv2d_weight_grad(...), %w, %r, 2, False) * unit
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import ActivationGrid, Emitter, Stage, TrainingGraph, replace, shape
from fqt_deploy.ops.lib.levels import SMALLEST_SPACING, WEIGHT_SPACINGS, unit
from fqt_deploy.passes.annotate_layers import call_key, products_of
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class BinarizeForward(Pass):
    """Insert signs, scales and straight-through gradients around the chosen layers' products."""

    name = "binarize-forward"
    exact = False
    produces = Stage.QUANTIZED

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite all three directions of every binarized layer."""
        inputs: dict[tuple[str, int | None], fx.Node] = {}
        nodes = products_of(graph, "forward")
        for node in nodes:
            inputs.setdefault(call_key(node), call_of(node).x)
            _forward(graph, node)
        for node in products_of(graph, "input_grad"):
            _input_grad(graph, node, inputs[call_key(node)])
        for node in products_of(graph, "weight_grad"):
            _weight_grad(graph, node)
        return bool(nodes)


def convolution_weight(emit: Emitter, weight: fx.Node) -> fx.Node:
    """``weight`` as [O, I, KH, KW]; a linear layer's is viewed as a 1x1 convolution's."""
    extents = shape(weight)
    return weight if len(extents) == 4 else emit(aten.view.default, weight, [*extents, 1, 1])


def _product(emit: Emitter, node: fx.Node, **operands: fx.Node) -> fx.Node:
    """The same product on other operands, keeping the marks of ``node``."""
    product = emit.again(node, **operands)
    product.meta.update({k: node.meta[k] for k in ("record", "direction")})
    return product


def _quantized(emit: Emitter, x: fx.Node, grid: ActivationGrid | None) -> fx.Node:
    """The signs of ``x``, or its levels on ``grid``."""
    if grid is None:
        return emit(fqt.sign.default, x)
    return emit(fqt.activation_levels.default, x, grid.spacing, grid.bits, grid.signed)


def _weight_unit(emit: Emitter, w: fx.Node, bits: int) -> fx.Node:
    """What level 1 of each output channel stands for: [O] float32."""
    scale = emit(fqt.weight_scale.default, convolution_weight(emit, w))
    return scale if bits == 1 else emit(aten.mul.Tensor, scale, WEIGHT_SPACINGS[bits] / 2)


def _reciprocals(emit: Emitter, w: fx.Node, bits: int) -> fx.Node:
    """One over the spacing of the grid of each output channel: [O] float32."""
    scale = emit(fqt.weight_scale.default, convolution_weight(emit, w))
    spacing = emit(aten.mul.Tensor, scale, WEIGHT_SPACINGS[bits])
    return emit(aten.reciprocal.default, emit(aten.clamp.default, spacing, SMALLEST_SPACING))


def _quantized_weight(emit: Emitter, w: fx.Node, bits: int) -> fx.Node:
    """The signs of ``w``, or its levels."""
    if bits == 1:
        return emit(fqt.sign.default, w)
    channels, *others = shape(w)
    reciprocals = emit(aten.view.default, _reciprocals(emit, w, bits), [channels, *(1 for _ in others)])
    return emit(fqt.activation_levels.default, emit(aten.mul.Tensor, w, reciprocals), 1.0, bits, True)


def _forward(graph: TrainingGraph, node: fx.Node) -> None:
    call, emit = call_of(node), Emitter(graph, node)
    grid, bits = node.meta["record"].grid, node.meta["record"].weight_bits
    z = _product(emit, node, x=_quantized(emit, call.x, grid), w=_quantized_weight(emit, call.w, bits))
    scale = _weight_unit(emit, call.w, bits)
    if grid is not None:
        scale = emit(aten.mul.Tensor, scale, unit(grid.spacing, grid.signed))
    replace(graph, node, emit(aten.mul.Tensor, z, scale))


def _input_grad(graph: TrainingGraph, node: fx.Node, x: fx.Node) -> None:
    call, emit = call_of(node), Emitter(graph, node)
    bits = node.meta["record"].weight_bits
    scaled = emit(aten.mul.Tensor, call.g, _weight_unit(emit, call.w, bits))
    gradient = _product(emit, node, g=scaled, w=_quantized_weight(emit, call.w, bits))
    grid = node.meta["record"].grid
    if grid is None:
        replace(graph, node, emit(fqt.straight_through.default, gradient, x))
    else:
        passed = emit(fqt.level_straight_through.default, gradient, x, grid.spacing, grid.bits, grid.signed)
        replace(graph, node, passed)


def _weight_grad(graph: TrainingGraph, node: fx.Node) -> None:
    w, grid = graph.placeholder(node.meta["record"].weight), node.meta["record"].grid
    emit = Emitter(graph, node)
    if node.meta["record"].turned:
        w = emit(aten.permute.default, w, [1, 0])
    if shape(w) != shape(node):  # forward reads it as a view
        w = emit(aten.view.default, w, shape(node))
    effective = _product(emit, node, x=_quantized(emit, call_of(node).x, grid))
    viewed = convolution_weight(emit, effective)
    bits = node.meta["record"].weight_bits
    latent = convolution_weight(emit, w)
    if bits == 1:
        gradient = emit(fqt.latent_weight_grad.default, viewed, latent, False)
    else:
        reciprocals = _reciprocals(emit, w, bits)
        gradient = emit(fqt.latent_level_grad.default, viewed, latent, reciprocals, bits, False)
    if grid is not None:
        gradient = emit(aten.mul.Tensor, gradient, unit(grid.spacing, grid.signed))
    replace(graph, node, gradient if viewed is effective else emit(aten.view.default, gradient, shape(effective)))
