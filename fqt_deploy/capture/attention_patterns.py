"""How people write attention: as PyTorch's function, or as softmax between two products, of matrices or by letters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.call import arguments_of

aten = torch.ops.aten

HIDING = -1e4
"""A number that takes the place of scores, or less, hides keys: nothing is left of them in float32."""
_MATRICES = (aten.matmul.default, aten.bmm.default)
_SCALING = (aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar)
_CASTS = (aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default, aten.type_as.default, aten.clone.default)
"""Ops that change nothing but a type, or not even that."""
_RESHAPES = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)


@dataclass(frozen=True)
class Heads:
    """Queries, keys or values.

    Attributes:
        node: where they lie.
        axes: the axis of ``node`` that holds samples, heads, positions and numbers; without heads three.
    """

    node: fx.Node
    axes: tuple[int, ...]

    @property
    def shape(self) -> list[int]:
        """Extents in the order of ``axes``."""
        extents = shape_of(self.node)
        return [extents[a] for a in self.axes]


@dataclass(frozen=True)
class Mask:
    """What is added to the scores.

    Attributes:
        node: numbers, or booleans.
        hides: the boolean that stands for what is not seen; None for numbers.
    """

    node: fx.Node
    hides: bool | None = None


@dataclass(frozen=True)
class Scores:
    """The operands of scores.

    Attributes:
        q, k: queries and keys.
        scale: what the products are multiplied by.
        masks: what is added to them, with the last first.
        causal: whether later keys are hidden.
    """

    q: Heads
    k: Heads
    scale: float = 1.0
    masks: tuple[Mask, ...] = ()
    causal: bool = False


@dataclass(frozen=True)
class Attention:
    """An attention.

    Attributes:
        scores: what the weights are the softmax of.
        v: values.
        dropout: share of the weights that are dropped.
        order: axes of the result among samples, heads, positions and numbers.
    """

    scores: Scores
    v: Heads
    dropout: float
    order: tuple[int, ...]


def attention_of(node: fx.Node) -> Attention | None:
    """The attention whose result is ``node``."""
    if node.op != "call_function":
        return None
    if node.target is aten.scaled_dot_product_attention.default:
        return _function(node)
    if (product := _weighted_values(node)) is None:
        return None
    weights, v, order = product
    dropout = 0.0
    while (found := _sole(weights)) is not None and found.target is aten.dropout.default:
        call = arguments_of(found)
        if dropout and call["train"] and call["p"]:
            return None
        dropout, weights = dropout or (float(call["p"]) if call["train"] else 0.0), found.args[0]
    if found is None or found.target is not aten.softmax.int or _axis(found) != len(shape_of(found)) - 1:
        return None
    scores = _scores_of(found.args[0])
    return None if scores is None else Attention(_grouped_keys(scores), _without_repetition(v), dropout, order)


def shape_of(node: fx.Node) -> list[int]:
    """The extents of a node's result."""
    return [int(d) for d in node.meta["val"].shape]


def _function(node: fx.Node) -> Attention:
    """The attention of a call of PyTorch's function."""
    call = arguments_of(node)
    axes = tuple(range(len(shape_of(call["query"]))))
    q, k, v = (Heads(call[name], axes) for name in ("query", "key", "value"))
    scale = 1 / math.sqrt(q.shape[-1]) if call["scale"] is None else call["scale"]
    mask = call["attn_mask"]
    masks = () if mask is None else (Mask(mask, None if mask.meta["val"].dtype != torch.bool else False),)
    scores = _grouped_keys(Scores(q, k, float(scale), masks, bool(call["is_causal"])))
    return Attention(scores, _without_repetition(v), float(call["dropout_p"]), axes)


def _weighted_values(node: fx.Node) -> tuple[Any, Heads, tuple[int, ...]] | None:
    """The weights and the values of a product of both, and the order of its axes."""
    if node.target in _MATRICES:
        axes = tuple(range(len(shape_of(node))))
        return node.args[0], Heads(node.args[1], axes), axes  # type: ignore[arg-type]
    for (w, weights), (letters, values), out in _letters(node):
        kept, added = [*w[:-2], w[-1]], set(letters) - set(w)
        if len(added) == 1 and set(letters) == {*kept, *added} and set(out) == {*w[:-1], *added}:
            own, result = [*kept, *added], [*w[:-1], *added]
            v = Heads(values, tuple(letters.index(x) for x in own))
            return weights, v, tuple(result.index(x) for x in out)
    return None


def _products(node: fx.Node) -> tuple[Heads, Heads] | None:
    """The queries and keys whose products ``node`` holds, for each query those with all keys in a row."""
    if node.target in _MATRICES or node.target is aten.baddbmm.default:
        q, k = node.args[:2] if node.target in _MATRICES else node.args[1:3]
        axes = tuple(range(len(shape_of(node))))
        return Heads(q, axes), Heads(k, (*axes[:-2], axes[-1], axes[-2]))  # type: ignore[arg-type]
    for (first, q), (second, k), out in _letters(node):
        summed = (set(first) & set(second)) - set(out)
        both, row, column = [*out[:-2]], out[-2], out[-1]
        if len(summed) == 1 and {*both, row, *summed} == set(first) and {*both, column, *summed} == set(second):
            own, other = ([x.index(y) for y in (*both, z, *summed)] for x, z in ((first, row), (second, column)))
            return Heads(q, tuple(own)), Heads(k, tuple(other))
    return None


_Term = tuple[str, fx.Node]


def _letters(node: fx.Node) -> list[tuple[_Term, _Term, str]]:
    """The operands of a product by letters, in either order, and the letters of its result."""
    if node.target is not aten.einsum.default:
        return []
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    terms, arrow, out = equation.partition("->")
    each = terms.split(",")
    plain = all(len(set(x)) == len(x) and x.isalpha() for x in (*each, out))
    if not arrow or not plain or len(each) != 2 or len(out) not in (3, 4) or len(operands) != 2:  # type: ignore[arg-type]
        return []
    if any(len(letters) != len(out) for letters in each):
        return []
    first, second = zip(each, operands, strict=True)  # type: ignore[arg-type]
    return [(first, second, out), (second, first, out)]


def _scores_of(node: Any) -> Scores | None:
    """What scores are computed from, if they are products that are scaled, then masked."""
    node = _sole(node)
    if node is None:
        return None
    if node.target is aten.baddbmm.default:
        return _added_products(node)
    if (product := _products(node)) is not None:
        return Scores(*product)
    call = arguments_of(node) if isinstance(node.target, torch._ops.OpOverload) else {}
    if node.target in _SCALING:
        return _scaled(node, call)
    if node.target in (aten.add.Tensor, aten.add_.Tensor) and call["alpha"] == 1:
        for scores, mask in ((call["self"], call["other"]), (call["other"], call["self"])):
            inner = _scores_of(scores) if isinstance(mask, fx.Node) else None
            if inner is not None:
                return replace(inner, masks=(Mask(mask), *inner.masks))
        return None
    return _hidden(node, call)


def _scaled(node: fx.Node, call: dict[str, Any]) -> Scores | None:
    """Scores times a number."""
    inner, factor = _scores_of(call["self"]), call["other"]
    factor = _constant(factor) if isinstance(factor, fx.Node) else factor
    if inner is None or inner.masks or not isinstance(factor, (int, float)) or not factor:
        return None
    by = float(factor) if node.target in (aten.mul.Tensor, aten.mul.Scalar) else 1 / float(factor)
    return replace(inner, scale=inner.scale * by)


def _added_products(node: fx.Node) -> Scores | None:
    """Products that are scaled and added to a mask in one call."""
    call, product = arguments_of(node), _products(node)
    if product is None or call["beta"] not in (0, 1):
        return None
    masks = (Mask(call["self"]),) if call["beta"] else ()
    return Scores(*product, float(call["alpha"]), masks)


def _hidden(node: fx.Node, call: dict[str, Any]) -> Scores | None:
    """Scores of which a boolean hides some."""
    if node.target in (aten.masked_fill.Scalar, aten.masked_fill_.Scalar):
        scores, mask, number, hides = call["self"], call["mask"], call["value"], True
    elif node.target is aten.where.ScalarOther:
        scores, mask, number, hides = call["self"], call["condition"], call["other"], False
    elif node.target is aten.where.self:
        scores, mask, number, hides = call["self"], call["condition"], _constant(call["other"]), False
    else:
        return None
    inner = _scores_of(scores)
    if inner is None or not isinstance(number, (int, float)) or number > HIDING:
        return None
    return replace(inner, masks=(Mask(mask, hides), *inner.masks))


def _constant(node: fx.Node) -> float | None:
    """The number that fills ``node``, if it is one."""
    if node.op == "call_function" and node.target in (aten.full.default, aten.scalar_tensor.default):
        number = node.args[-1] if node.target is aten.full.default else node.args[0]
        return float(number) if isinstance(number, (int, float)) else None
    return None


def _grouped_keys(scores: Scores) -> Scores:
    return replace(scores, k=_without_repetition(scores.k))


def _without_repetition(x: Heads) -> Heads:
    """The keys or values that were repeated, one after another, for several heads of queries; otherwise ``x``."""
    if len(x.axes) != 4:
        return x
    node, axes = x.node, list(x.axes)
    while node.op == "call_function":
        call = arguments_of(node)
        if node.target in (aten.transpose.int, aten.permute.default):
            order = list(range(len(axes)))
            if node.target is aten.transpose.int:
                a, b = int(call["dim0"]) % len(axes), int(call["dim1"]) % len(axes)
                order[a], order[b] = b, a
            else:
                order = [int(d) % len(axes) for d in call["dims"]]
            axes = [order[a] for a in axes]
        elif node.target not in (aten.contiguous.default, aten.clone.default):
            break
        node = call["self"]
    source = _repeated(node, axes[1])
    return x if source is None else Heads(source, tuple(axes))


def _repeated(node: fx.Node, axis: int) -> fx.Node | None:
    """What ``node`` repeats along ``axis``, each part as often as the others."""
    if node.op != "call_function":
        return None
    call = arguments_of(node)
    if node.target is aten.repeat_interleave.self_int:
        dim = call["dim"]
        return call["self"] if dim is not None and int(dim) % len(shape_of(node)) == axis else None
    expanded = call["self"] if node.target in _RESHAPES else None
    if expanded is None or expanded.target is not aten.expand.default:
        return None
    added = arguments_of(expanded)["self"]
    if added.target is not aten.unsqueeze.default:
        return None
    source = arguments_of(added)["self"]
    extents, spread, whole = shape_of(source), shape_of(expanded), shape_of(node)
    inserted = int(arguments_of(added)["dim"]) % len(spread)
    count = spread[inserted]
    fits = inserted == axis + 1 and [*spread[:inserted], *spread[inserted + 1 :]] == extents
    return source if fits and whole == [e * (count if a == axis else 1) for a, e in enumerate(extents)] else None


def _sole(node: Any) -> fx.Node | None:
    """A call whose result is read by one other alone, behind casts that change nothing; None for anything else."""
    while isinstance(node, fx.Node) and node.op == "call_function" and len(_readers(node)) == 1:
        if node.target not in _CASTS:
            return node
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.meta["val"].dtype != node.meta["val"].dtype:
            return None
        node = source
    return None


def _readers(node: fx.Node) -> list[fx.Node]:
    """The users of a node but for those that read its type alone."""
    return [u for u in node.users if u.target is not aten.type_as.default or u.args[0] is node]


def _axis(softmax: fx.Node) -> int:
    return int(arguments_of(softmax)["dim"]) % len(shape_of(softmax))


def mask_fits(mask: Mask, extents: Sequence[int]) -> bool:
    """Whether ``mask`` broadcasts to scores of these extents, and is of floats or booleans as it says."""
    value, shape = mask.node.meta["val"], shape_of(mask.node)
    if value.dtype != (torch.float32 if mask.hides is None else torch.bool) or len(shape) > len(extents):
        return False
    return all(m in (1, e) for m, e in zip(reversed(shape), reversed(extents), strict=False))
