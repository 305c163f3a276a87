"""Spell every contraction as one of the ``fqt`` products, on channels-last tensors.

Before::

    %y = aten.convolution(%x, %w, %b, [1, 1], [1, 1], ...)                        # [N, O, H, W]
    %gx, %gw, %gb = aten.convolution_backward(%gy, %x, %w, ...)
    %z = aten.addmm(%b2, %rows, aten.permute(%w2, [1, 0]))

After::

    %y = permute(fqt.conv2d(permute(%x), %w, [1, 1], [1, 1]) + %b)                # [N, H, W, O] inside
    %gx = permute(fqt.conv2d_input_grad(permute(%gy), %w, ...))
    %gw = fqt.conv2d_weight_grad(permute(%x), permute(%gy), ...);  %gb = aten.sum(permute(%gy), [0, 1, 2])
    %z = fqt.linear(%rows, %w2) + %b2

Convolutions with groups, dilation or transposition, or with another number of spatial axes, are ``fqt.grouped_conv``
and its gradients (``normalize_convolution``).

A matrix product becomes ``linear`` (second operand transposed), ``linear_weight_grad`` (first operand transposed) or
``linear_input_grad`` (neither), which is what it is in a training step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.call import call_of, source_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, shape
from fqt_deploy.passes.normalize_convolution import convolution, convolution_backward
from fqt_deploy.passes.pass_base import Pass, rewrite_each

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class NormalizeProducts(Pass):
    """Rewrite convolutions and matrix products as the products of a training step."""

    name = "normalize-products"

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite every contraction of ``graph``, and return whether there was one."""
        rewrites: dict[Any, Callable[[TrainingGraph, fx.Node], None]] = {
            aten.convolution.default: convolution,
            aten.convolution_backward.default: convolution_backward,
            aten.addmm.default: _addmm,
            aten.mm.default: _mm,
            aten.bmm.default: _bmm,
        }
        nodes = graph.calls(*rewrites)
        rewrite_each(graph, nodes, lambda node: rewrites[node.target](graph, node))
        return bool(nodes)


def _transposed_weight(node: fx.Node) -> fx.Node | None:
    """The matrix that ``node`` is written as the transpose of; that of a parameter with one row is a view."""
    if node.target is aten.permute.default:
        return source_of(node)
    if node.target is aten.view.default and (source := source_of(node)).op == "placeholder":
        return source if 1 in shape(source) and shape(source) == shape(node)[::-1] else None
    return None


def _transposed_gradient(emit: Emitter, node: fx.Node, other: fx.Node) -> fx.Node | None:
    """The same for what is multiplied by ``other``, which is no weight; a view of one row or column is a transpose."""
    if node.target is aten.permute.default:
        return source_of(node)
    if node.target is aten.view.default and 1 in shape(node) and other.op != "placeholder":
        return emit(aten.view.default, node, shape(node)[::-1])
    return None


def _matmul(emit: Emitter, a: fx.Node, b: fx.Node) -> fx.Node:
    if (w := _transposed_weight(b)) is not None:
        return emit(fqt.linear.default, a, w)
    if (g := _transposed_gradient(emit, a, b)) is not None:
        return emit(fqt.linear_weight_grad.default, b, g)
    return emit(fqt.linear_input_grad.default, a, b)


def _mm(graph: TrainingGraph, node: fx.Node) -> None:
    call, emit = call_of(node), Emitter(graph, node, role="product")
    replace(graph, node, _matmul(emit, call.self, call.mat2))


def _addmm(graph: TrainingGraph, node: fx.Node) -> None:
    call, emit = call_of(node), Emitter(graph, node, role="product")
    product, addend = _matmul(emit, call.mat1, call.mat2), call.self
    if call.alpha != 1:
        product = emit(aten.mul.Tensor, product, call.alpha)
    if call.beta != 1:
        addend = emit(aten.mul.Tensor, addend, call.beta)
    replace(graph, node, emit(aten.add.Tensor, product, addend))


def _bmm(graph: TrainingGraph, node: fx.Node) -> None:
    call, emit = call_of(node), Emitter(graph, node, role="product")
    if "loss" not in graph.outputs:
        if (matrix := _shared_matrix(call.mat2)) is not None:
            replace(graph, node, _folded(emit, call.self, matrix))
            return
        if (matrix := _shared_matrix(call.self)) is not None:
            other = emit(aten.permute.default, matrix, [1, 0])
            product = _folded(emit, emit(aten.permute.default, call.mat2, [0, 2, 1]), other)
            replace(graph, node, emit(aten.permute.default, product, [0, 2, 1]))
            return
    replace(graph, node, Emitter(graph, node)(fqt.batch_matmul.default, call.self, call.mat2))


def _shared_matrix(node: fx.Node) -> fx.Node | None:
    """The one matrix that ``node`` repeats for each sample.

    That is how PyTorch multiplies a tensor by a layer's weight where no gradient is wanted and the tensor is not
    contiguous. In a training step the same product has two matrices, and the layer has to be the same.
    """
    size, repeated = shape(node)[-2:], False
    while len(shape(node)) > 2:
        if node.target not in (aten.view.default, aten.expand.default) or shape(source_of(node))[-2:] != size:
            return None
        repeated |= node.target is aten.expand.default
        node = source_of(node)
    return node if repeated else None


def _folded(emit: Emitter, batch: fx.Node, matrix: fx.Node) -> fx.Node:
    """The product of every matrix in ``batch`` [N, M, K] with ``matrix`` [K, O], as one product of N x M rows."""
    samples, rows, depth = shape(batch)
    whole = emit(aten.clone.default, batch, memory_format=torch.contiguous_format)
    product = _matmul(emit, emit(aten.view.default, whole, [samples * rows, depth]), matrix)
    return emit(aten.view.default, product, [samples, rows, shape(matrix)[1]])
