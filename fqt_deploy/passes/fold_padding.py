"""Make zeros in front of a binarized convolution its padding: the sign of a zero is -1, padding stays 0.

Before, as ``padding="same"`` is traced for even kernels, or with ``ZeroPad2d`` in front (here NHWC)::

    %p  = aten.constant_pad_nd(%x, [0, 0, 1, 2, 1, 2])
    %y  = fqt.conv2d(%p, %w, [1, 1], [0, 0])
    %gx = aten.constant_pad_nd(fqt.conv2d_input_grad(%gy, %w, ...), [0, 0, -1, -2, -1, -2])

After, with as much padding on both sides as covers the larger, and positions that are none of the convolution's cut::

    %y  = slices of fqt.conv2d(%x, %w, [1, 1], [2, 2])
    %gx = fqt.conv2d_input_grad(aten.constant_pad_nd(%gy, ...), %w, ...)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, shape
from fqt_deploy.passes.annotate_layers import call_key, products_of
from fqt_deploy.passes.normalize_views import NormalizeViews
from fqt_deploy.passes.pass_base import Pass
from fqt_deploy.passes.zero_padding import ZeroPadding, padding_before

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class _Fold:
    """One convolution with the zeros in front of it folded.

    Attributes:
        zeros: that are in front of it.
        padding: of the convolution from now on, for height and width.
        first: the position of the new result that is the first of the old one.
        old: height and width of the old result.
        new: of the new one.
    """

    zeros: ZeroPadding
    padding: list[int]
    first: list[int]
    old: list[int]
    new: list[int]


@dataclass(frozen=True)
class FoldPadding(Pass):
    """Fold zeros into the padding of binarized convolutions, in all three directions."""

    name = "fold-padding"

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite forward products first: gradients follow what was done there."""
        folds: dict[tuple[str, int | None], _Fold] = {}
        for node in products_of(graph, "forward"):
            zeros = padding_before(node)
            if zeros is not None:
                folds.setdefault(call_key(node), _forward(graph, node, zeros))
        for node in products_of(graph, "weight_grad"):
            if call_key(node) in folds and padding_before(node) is not None:
                _weight_grad(graph, node, folds[call_key(node)])
        for node in products_of(graph, "input_grad"):
            if call_key(node) in folds:
                _input_grad(graph, node, folds[call_key(node)])
        if folds:
            NormalizeViews().run(graph)
        return bool(folds)


def _fold(node: fx.Node, zeros: ZeroPadding) -> _Fold:
    call = call_of(node)
    kernel, stride, own = shape(call.w)[2:], list(call.stride), list(call.padding)
    first = [max(0, -(-(after - before) // step)) for (before, after), step in zip(zeros.extents, stride, strict=True)]
    padding = [
        p + before + step * skipped
        for p, (before, _), step, skipped in zip(own, zeros.extents, stride, first, strict=True)
    ]
    new = [(h + 2 * p - k) // s + 1 for h, p, k, s in zip(zeros.image, padding, kernel, stride, strict=True)]
    return _Fold(zeros, padding, first, shape(node)[1:3], new)


def _forward(graph: TrainingGraph, node: fx.Node, zeros: ZeroPadding) -> _Fold:
    emit, fold = Emitter(graph, node), _fold(node, zeros)
    result = _marked(emit.again(node, x=zeros.emit_source(emit), padding=fold.padding), node)
    for axis, (first, old, new) in enumerate(zip(fold.first, fold.old, fold.new, strict=True), start=1):
        if old != new:
            result = emit(aten.slice.Tensor, result, axis, first, first + old)
    replace(graph, node, result)
    return fold


def _weight_grad(graph: TrainingGraph, node: fx.Node, fold: _Fold) -> None:
    emit, zeros = Emitter(graph, node), padding_before(node)
    assert zeros is not None
    g = _spread(emit, call_of(node).g, fold)
    replace(graph, node, _marked(emit.again(node, x=zeros.emit_source(emit), g=g, padding=fold.padding), node))


def _input_grad(graph: TrainingGraph, node: fx.Node, fold: _Fold) -> None:
    """Nothing but the cut of the zeros reads the gradient there: what is put there does not matter."""
    emit = Emitter(graph, node)
    g, image = _spread(emit, call_of(node).g, fold), fold.zeros.image
    gradient = _marked(emit.again(node, g=g, input_hw=image, padding=fold.padding), node)
    for cut, permuted in _cuts(node, fold.zeros):
        anchor = Emitter(graph, cut)
        inner = gradient if permuted is None else anchor(aten.permute.default, gradient, permuted)
        replace(graph, cut, inner)
    height, width = fold.zeros.extents
    replace(graph, node, emit(aten.constant_pad_nd.default, gradient, [0, 0, *width, *height]))


def _cuts(gradient: fx.Node, zeros: ZeroPadding) -> list[tuple[fx.Node, Sequence[int] | None]]:
    """Nodes that cut exactly ``zeros`` off ``gradient`` [N, H, W, C], and the permutation before them, if any."""
    height, width = zeros.extents
    found: list[tuple[fx.Node, Sequence[int] | None]] = []
    for user in gradient.users:
        if user.target is aten.permute.default and list(call_of(user).dims) == [0, 3, 1, 2]:
            found += [
                (cut, call_of(user).dims) for cut in user.users if _pads(cut) == [*_minus(width), *_minus(height)]
            ]
        elif _pads(user) == [0, 0, *_minus(width), *_minus(height)]:
            found.append((user, None))
    return found


def _pads(node: fx.Node) -> list[int] | None:
    return list(call_of(node).pad) if node.target is aten.constant_pad_nd.default else None


def _minus(extents: tuple[int, int]) -> list[int]:
    return [-extent for extent in extents]


def _spread(emit: Emitter, g: fx.Node, fold: _Fold) -> fx.Node:
    """The gradient of the new result [N, H, W, C]: that of the old one, and zero where it was cut."""
    height, width = ([first, new - old - first] for first, old, new in zip(fold.first, fold.old, fold.new, strict=True))
    return emit(aten.constant_pad_nd.default, g, [0, 0, *width, *height]) if any(height + width) else g


def _marked(product: fx.Node, like: fx.Node) -> fx.Node:
    product.meta.update({key: like.meta[key] for key in ("record", "direction")})
    return product
