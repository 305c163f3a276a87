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
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, replace_results, shape
from fqt_deploy.passes.pass_base import Pass, rewrite_each

aten = torch.ops.aten
fqt = torch.ops.fqt

TO_CHANNELS_LAST = [0, 2, 3, 1]
TO_CHANNELS_FIRST = [0, 3, 1, 2]


@dataclass(frozen=True)
class NormalizeProducts(Pass):
    """Rewrite convolutions and matrix products as the products of a training step."""

    name = "normalize-products"

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite every contraction; a convolution that has no lowering is an FQT203 error."""
        rewrites: dict[Any, Callable[[TrainingGraph, fx.Node], None]] = {
            aten.convolution.default: _convolution,
            aten.convolution_backward.default: _convolution_backward,
            aten.addmm.default: _addmm,
            aten.mm.default: _mm,
            aten.bmm.default: _bmm,
        }
        nodes = graph.calls(*rewrites)
        rewrite_each(graph, nodes, lambda node: rewrites[node.target](graph, node))
        return bool(nodes)


def channels_last(emit: Emitter, node: fx.Node) -> fx.Node:
    """Insert the permutation of ``node`` [N, C, H, W] to [N, H, W, C]."""
    return emit(aten.permute.default, node, TO_CHANNELS_LAST)


def channels_first(emit: Emitter, node: fx.Node) -> fx.Node:
    """Insert the permutation of ``node`` [N, H, W, C] to [N, C, H, W]."""
    return emit(aten.permute.default, node, TO_CHANNELS_FIRST)


def _geometry(node: fx.Node) -> dict[str, list[int]]:
    """Stride and padding of a convolution or its gradient; FQT203 for what has no lowering."""
    call = call_of(node)
    axes = len(shape(call.weight)) - 2
    problems = [
        what
        for what, present in (
            (f"{axes} spatial axes", axes != 2),
            (f"dilation {list(call.dilation)}", any(d != 1 for d in call.dilation)),
            (f"{call.groups} groups", call.groups != 1),
            ("transposition", call.transposed),
        )
        if present
    ]
    if problems:
        raise FqtError(
            f"cannot lower a convolution with {', '.join(problems)}",
            code="FQT203",
            node=node,
            hint="supported: Conv2d with groups=1 and dilation=1",
        )
    return {"stride": _both(call.stride), "padding": _both(call.padding)}


def _both(extents: Any) -> list[int]:
    """Numbers for height and width; one number, as ``padding="valid"`` is traced, stands for both."""
    return [*extents] if len(extents) == 2 else [*extents] * 2


def _convolution(graph: TrainingGraph, node: fx.Node) -> None:
    call, geometry = call_of(node), _geometry(node)
    emit = Emitter(graph, node, role="product")
    y = emit(fqt.conv2d.default, channels_last(emit, call.input), call.weight, *geometry.values())
    if call.bias is not None:
        y = emit(aten.add.Tensor, y, call.bias)
    replace(graph, node, channels_first(emit, y))


def _convolution_backward(graph: TrainingGraph, node: fx.Node) -> None:
    call, geometry = call_of(node), _geometry(node)
    emit = Emitter(graph, node, role="product")
    g = channels_last(emit, call.grad_output)
    results: list[fx.Node | None] = [None, None, None]
    wants_input, wants_weight, wants_bias = call.output_mask
    if wants_input:
        spatial = shape(call.input)[2:]
        gradient = emit(fqt.conv2d_input_grad.default, g, call.weight, spatial, *geometry.values())
        results[0] = channels_first(emit, gradient)
    if wants_weight:
        x, kernel = channels_last(emit, call.input), shape(call.weight)[2:]
        results[1] = emit(fqt.conv2d_weight_grad.default, x, g, kernel, *geometry.values())
    if wants_bias:
        results[2] = emit(aten.sum.dim_IntList, g, [0, 1, 2])
    replace_results(graph, node, results)


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
    call, emit = call_of(node), Emitter(graph, node)
    replace(graph, node, emit(fqt.batch_matmul.default, call.self, call.mat2))
