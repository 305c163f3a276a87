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

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.call import source_of
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, shape
from fqt_deploy.passes.pass_base import Pass

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
        rewrites = {
            aten.convolution.default: _convolution,
            aten.convolution_backward.default: _convolution_backward,
            aten.addmm.default: _addmm,
            aten.mm.default: _mm,
            aten.bmm.default: _bmm,
        }
        nodes = graph.calls(*rewrites)
        for node in nodes:
            rewrites[node.target](graph, node)
        return bool(nodes)


def channels_last(emit: Emitter, node: fx.Node) -> fx.Node:
    """Insert the permutation of ``node`` [N, C, H, W] to [N, H, W, C]."""
    return emit(aten.permute.default, node, TO_CHANNELS_LAST)


def channels_first(emit: Emitter, node: fx.Node) -> fx.Node:
    """Insert the permutation of ``node`` [N, H, W, C] to [N, C, H, W]."""
    return emit(aten.permute.default, node, TO_CHANNELS_FIRST)


def _geometry(node: fx.Node, weight: fx.Node, arguments: tuple[Any, ...]) -> tuple[list[int], list[int]]:
    """Stride and padding of a convolution; FQT203 for what has no lowering."""
    stride, padding, dilation, transposed, _, groups = arguments
    problems = [
        what
        for what, present in (
            (f"{len(shape(weight)) - 2} spatial axes", len(shape(weight)) != 4),
            (f"dilation {list(dilation)}", any(d != 1 for d in dilation)),
            (f"{groups} groups", groups != 1),
            ("transposition", transposed),
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
    return _both(stride), _both(padding)


def _both(extents: Any) -> list[int]:
    """Numbers for height and width; one number, as ``padding="valid"`` is traced, stands for both."""
    return [*extents] if len(extents) == 2 else [*extents] * 2


def _convolution(graph: TrainingGraph, node: fx.Node) -> None:
    x, w, bias, *arguments = node.args
    stride, padding = _geometry(node, w, tuple(arguments))  # type: ignore[arg-type]
    emit = Emitter(graph, node, role="product")
    y = emit(fqt.conv2d.default, channels_last(emit, x), w, stride, padding)  # type: ignore[arg-type]
    if bias is not None:
        y = emit(aten.add.Tensor, y, bias)
    replace(graph, node, channels_first(emit, y))


def _convolution_backward(graph: TrainingGraph, node: fx.Node) -> None:
    gy, x, w, _, *arguments, mask = node.args
    stride, padding = _geometry(node, w, tuple(arguments))  # type: ignore[arg-type]
    emit = Emitter(graph, node, role="product")
    g = channels_last(emit, gy)  # type: ignore[arg-type]
    results: list[fx.Node | None] = [None, None, None]
    if mask[0]:  # type: ignore[index]
        spatial = shape(x)[2:]  # type: ignore[arg-type]
        results[0] = channels_first(emit, emit(fqt.conv2d_input_grad.default, g, w, spatial, stride, padding))
    if mask[1]:  # type: ignore[index]
        kernel = shape(w)[2:]  # type: ignore[arg-type]
        xl = channels_last(emit, x)  # type: ignore[arg-type]
        results[1] = emit(fqt.conv2d_weight_grad.default, xl, g, kernel, stride, padding)
    if mask[2]:  # type: ignore[index]
        results[2] = emit(aten.sum.dim_IntList, g, [0, 1, 2])
    for user in list(node.users):
        assert user.target is operator.getitem
        if user.users:
            user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index,arg-type]
        graph.graph.erase_node(user)
    graph.graph.erase_node(node)


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
    emit = Emitter(graph, node, role="product")
    replace(graph, node, _matmul(emit, *node.args))  # type: ignore[arg-type]


def _addmm(graph: TrainingGraph, node: fx.Node) -> None:
    if any(node.kwargs.get(k, 1) != 1 for k in ("alpha", "beta")):
        raise FqtError("cannot lower addmm with alpha or beta other than 1", code="FQT203", node=node)
    bias, a, b = node.args
    emit = Emitter(graph, node, role="product")
    replace(graph, node, emit(aten.add.Tensor, _matmul(emit, a, b), bias))  # type: ignore[arg-type]


def _bmm(graph: TrainingGraph, node: fx.Node) -> None:
    emit = Emitter(graph, node)
    replace(graph, node, emit(fqt.batch_matmul.default, *node.args))
