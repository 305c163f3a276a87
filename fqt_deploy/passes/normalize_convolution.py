"""Rewrites of ``normalize-products`` for convolutions: which ``fqt`` product each one is.

A plain two-dimensional one is ``conv2d``; any other is ``grouped_conv``, which takes groups, dilation and any number of
spatial axes. A transposed one is the input gradient of a convolution, and its own input gradient is that convolution::

    %y = aten.convolution(%x, %w, None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1)       # transposed

    %y = permute(fqt.grouped_conv_input_grad(permute(%x), %w, [OH, OW], [2, 2], [1, 1], [1, 1], 1))

One spatial axis becomes two, of which the first has one element: kernels for two axes serve both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.call import Call, call_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, replace_results, shape
from fqt_deploy.ops.lib import convolution_axes

aten = torch.ops.aten
fqt = torch.ops.fqt


def channels_last(emit: Emitter, node: fx.Node) -> fx.Node:
    """Insert the permutation of ``node`` [N, C, *spatial] to [N, *spatial, C]."""
    return emit(aten.permute.default, node, convolution_axes.channels_last(len(shape(node))))


def channels_first(emit: Emitter, node: fx.Node) -> fx.Node:
    """Insert the permutation of ``node`` [N, *spatial, C] to [N, C, *spatial]."""
    return emit(aten.permute.default, node, convolution_axes.channels_first(len(shape(node))))


def convolution(graph: TrainingGraph, node: fx.Node) -> None:
    """Rewrite a convolution: the product on channels-last tensors, then its bias."""
    call, products = call_of(node), _Products.of(node)
    emit = Emitter(graph, node, role="product")
    x, w = _image(emit, call.input), _weight(emit, call.weight)
    result = [int(d) for d in node.meta["val"].shape[2:]]
    y = products.input_grad(emit, x, w, result) if call.transposed else products.forward(emit, x, w)
    if call.bias is not None:
        y = emit(aten.add.Tensor, y, call.bias)
    replace(graph, node, _from_image(emit, y, shape(node)))


def convolution_backward(graph: TrainingGraph, node: fx.Node) -> None:
    """Rewrite the gradients of a convolution that are asked for."""
    call, products = call_of(node), _Products.of(node)
    emit = Emitter(graph, node, role="product")
    g, weight = _image(emit, call.grad_output), shape(call.weight)
    results: list[fx.Node | None] = [None, None, None]
    wants_input, wants_weight, wants_bias = call.output_mask
    if wants_input:
        w, extents = _weight(emit, call.weight), shape(call.input)
        gx = products.forward(emit, g, w) if call.transposed else products.input_grad(emit, g, w, extents[2:])
        results[0] = _from_image(emit, gx, extents)
    if wants_weight:
        x = _image(emit, call.input)
        gw = products.weight_grad(emit, *((g, x) if call.transposed else (x, g)), weight[2:])
        results[1] = gw if shape(gw) == weight else emit(aten.view.default, gw, weight)
    if wants_bias:
        results[2] = emit(aten.sum.dim_IntList, g, list(range(len(shape(g)) - 1)))
    replace_results(graph, node, results)


@dataclass(frozen=True)
class _Products:
    """The three products of one convolution, or of the one that a transposed convolution is a gradient of.

    Attributes:
        plain: whether they are those of ``conv2d``.
        stride: one for each spatial axis, as the next two.
        padding: zeros on either side.
        dilation: positions from one tap to the next.
        groups: of channels.
    """

    plain: bool
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    @staticmethod
    def of(node: fx.Node) -> _Products:
        call = call_of(node)
        plain = len(shape(call.weight)) == 4 and not call.transposed and call.groups == 1
        return _Products(
            plain and all(d == 1 for d in call.dilation),
            _pair(call, call.stride, 1), _pair(call, call.padding, 0), _pair(call, call.dilation, 1), call.groups,
        )  # fmt: skip

    def geometry(self) -> list[Any]:
        return [self.stride, self.padding, *([] if self.plain else [self.dilation, self.groups])]

    def forward(self, emit: Emitter, x: fx.Node, w: fx.Node) -> fx.Node:
        target = fqt.conv2d.default if self.plain else fqt.grouped_conv.default
        return emit(target, x, w, *self.geometry())

    def input_grad(self, emit: Emitter, g: fx.Node, w: fx.Node, image: list[int]) -> fx.Node:
        target = fqt.conv2d_input_grad.default if self.plain else fqt.grouped_conv_input_grad.default
        return emit(target, g, w, _two(image), *self.geometry())

    def weight_grad(self, emit: Emitter, x: fx.Node, g: fx.Node, kernel: list[int]) -> fx.Node:
        target = fqt.conv2d_weight_grad.default if self.plain else fqt.grouped_conv_weight_grad.default
        return emit(target, x, g, _two(kernel), *self.geometry())


def _pair(call: Call, values: list[int], neutral: int) -> list[int]:
    """Values for the spatial axes, from one a spatial axis or one for all."""
    axes = len(shape(call.weight)) - 2
    values = list(values) * (axes if len(values) == 1 else 1)
    return [neutral, *values] if axes == 1 else values


def _two(spatial: list[int]) -> list[int]:
    return [1, *spatial] if len(spatial) == 1 else spatial


def _image(emit: Emitter, node: fx.Node) -> fx.Node:
    """Insert the permutation of ``node`` to channels last; one spatial axis becomes two."""
    last, extents = channels_last(emit, node), shape(node)
    if len(extents) != 3:
        return last
    samples, channels, positions = extents
    return emit(aten.view.default, last, [samples, 1, positions, channels])


def _from_image(emit: Emitter, node: fx.Node, extents: list[int]) -> fx.Node:
    """Insert what makes a result of products one of ``extents``, channels first."""
    if len(extents) == 3:
        samples, channels, positions = extents
        node = emit(aten.view.default, node, [samples, positions, channels])
    return channels_first(emit, node)


def _weight(emit: Emitter, node: fx.Node) -> fx.Node:
    """Insert the view of a weight for two spatial axes, where it has one."""
    extents = shape(node)
    return emit(aten.view.default, node, [*extents[:2], 1, extents[2]]) if len(extents) == 3 else node
