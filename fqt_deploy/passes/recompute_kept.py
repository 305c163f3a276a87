"""Compute products of forward again in backward, of what backward reads alone, instead of keeping them.

Before::

    %z    = fqt.level_conv2d(%codes, %weight_bits, ...)           # forward, all samples; kept until backward
    %rows = fqt.gather_rows(gelu(%z * %scale), %index)            # backward
    %kept = fqt.gather_rows(view(%codes), %index)                 # backward, for the weight's gradient

After::

    %z    = fqt.level_conv2d(%codes, %weight_bits, ...)           # forward; free after the next layer
    %kept = fqt.gather_rows(%codes, %index)                       # backward, for both
    %z2   = fqt.level_conv2d(%kept, %weight_bits, ...)            # as many samples as are kept
    %rows = gelu(%z2 * %scale)

Where a fifth of the samples, or of the tokens, is kept it costs a fifth of the product. So is a sum of residuals, if
one of its two parts is such a product and the other is kept: every second sum of a transformer. Where tokens are
selected, what backward reads of all of them, as attention reads keys and values, is computed again of all, right before
it is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import TrainingGraph, shape
from fqt_deploy.ops.op import FqtOp, op_of
from fqt_deploy.passes.copy_forward import CopyForward, is_elementwise, is_forward
from fqt_deploy.passes.kept_rows import PACKED, Rows, is_plain, rows_of
from fqt_deploy.passes.pass_base import Pass

fqt = torch.ops.fqt

_PRODUCTS = (*PACKED, fqt.conv2d.default)
"""The products whose operands are kept, or there, anyhow."""
SMALLEST = 1 << 20
"""Lower bound of the bytes of a value that is computed again."""
SMALL = 8
"""A value is small that has so many times fewer bytes than the one that is computed from it."""
OPERATIONS_PER_BYTE = 512
"""Upper bound of the operations on bits for each byte that need not be kept."""
OPERATIONS_PER_BYTE_OF_ALL = 2048
"""The same where a linear layer's product is computed again of all rows: keys of up to 1024 channels, read on 4 bits.

In a transformer's step keys and values are a small part of all products, whatever its width is.
"""
RowsOf = Callable[[int], Rows]
"""The rows that a value has so many of."""
FLOAT_OPERATION = 40
"""One operation on floats costs about as much as this many on bits."""


@dataclass(frozen=True)
class RecomputeKept(Pass):
    """Give backward its own copy of the products of forward that it reads of some samples or tokens alone.

    Attributes:
        always: whether to do so at any cost; otherwise where it is cheap for what it saves.
    """

    name = "recompute-kept"

    always: bool = False

    def run(self, graph: TrainingGraph) -> bool:
        """Decide for each value by its readers, then rewrite what reads the chosen ones in the order of backward."""
        origins, rows = _origins(graph), cache(partial(rows_of, graph))
        chosen: dict[fx.Node, _Readers] = {}
        computed: set[fx.Node] = set()
        for value in graph.graph.nodes:
            products = _products(value, origins, chosen)
            found = _readers(value, origins, rows) if products else None
            if found is None or (found.whole and not (graph.selection == "tokens" and all(map(_is_linear, products)))):
                continue
            if self.always or _pays(value, products, found, origins, rows):
                chosen[value] = found
                computed |= {value, *products}
        copies = CopyForward(graph, rows, origins, computed)
        gathers = {gather for found in chosen.values() for gather in found.gathers}
        whole = {reader for found in chosen.values() for reader in found.whole}
        for node in list(graph.graph.nodes):
            if node in gathers:
                copies.replace_gather(node)
            elif node in whole:
                copies.replace_operands(node)
        return bool(chosen)


@dataclass(frozen=True)
class _Readers:
    """What reads a value in backward, or what forward computes from it element by element.

    Attributes:
        gathers: all that does so, if it takes the same rows.
        whole: else the readers, each with what it reads.
    """

    gathers: frozenset[fx.Node]
    whole: Mapping[fx.Node, fx.Node]


def _products(value: fx.Node, origins: Mapping[fx.Node, fx.Node], chosen: Collection[fx.Node]) -> set[fx.Node]:
    """The products by which ``value``, if it is large, is computed from what is kept: its own, or one that is added.

    Of two sums, one of which is added to the other, one is kept: not both are ``chosen``.
    """
    if not is_forward(value) or _bytes(value) < SMALLEST:
        return set()
    if value.target in _PRODUCTS:
        return {value}
    if not is_elementwise(value) or origins[value] is not value:
        return set()
    parts = _large_parts(value, origins)
    products = {part for part in parts if part.target in _PRODUCTS}
    return products if len(parts) == 2 and len(products) == 1 and not any(p in chosen for p in parts) else set()


def _origins(graph: TrainingGraph) -> dict[fx.Node, fx.Node]:
    """The one large value from which each value of forward is computed element by element; the value itself if none.

    A sum of several large values, as in a residual connection, is kept itself.
    """
    found: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        found[node] = node
        if is_forward(node) and is_elementwise(node):
            large = _large_parts(node, found)
            if len(large) == 1:
                (found[node],) = large
    return found


def _large_parts(node: fx.Node, origins: Mapping[fx.Node, fx.Node]) -> set[fx.Node]:
    """The large values from which ``node`` is computed, by the ``origins`` of its operands."""
    return {origins[operand] for operand in node.all_input_nodes if _bytes(operand) * SMALL > _bytes(node)}


def _readers(value: fx.Node, origins: Mapping[fx.Node, fx.Node], rows: RowsOf) -> _Readers | None:
    """What reads ``value`` in backward; None if nothing does, or the step returns it."""
    read: dict[fx.Node, fx.Node] = {}
    waiting = [value]
    while waiting:
        current = waiting.pop()
        for user in current.users:
            if user.op == "output":
                return None
            if not is_forward(user):
                read[user] = current
            elif origins[user] is value and user not in waiting:
                waiting.append(user)
    gathers = [_gathers_behind(reader, rows) for reader in read]
    taken = frozenset(gather for found in gathers if found is not None for gather in found)
    if None not in gathers and len({call_of(gather).index for gather in taken}) == 1:
        return _Readers(taken, {})
    return _Readers(frozenset(), read) if read else None


def _gathers_behind(reader: fx.Node, rows: RowsOf) -> set[fx.Node] | None:
    """What takes rows of ``reader``, or of what is computed from it row by row; None if it is read otherwise."""
    if reader.target is fqt.gather_rows.default:
        read = call_of(reader).x
        return {reader} if rows(shape(read)[0]).operands(read) is not None else None
    found: set[fx.Node] = set()
    for user in reader.users if is_elementwise(reader) else ():
        behind = _gathers_behind(user, rows)
        if behind is None:
            return None
        found |= behind
    return found or None


def _pays(
    value: fx.Node, products: set[fx.Node], readers: _Readers, origins: Mapping[fx.Node, fx.Node], rows: RowsOf
) -> bool:
    """Whether computing ``products`` again costs little for what need not be kept of ``value``."""
    if readers.whole:
        operations = sum(map(_operations, products))
        return operations <= OPERATIONS_PER_BYTE_OF_ALL * max(map(_bytes, readers.whole.values()))
    gather = next(iter(readers.gathers))
    (keep,), (count, *_) = shape(call_of(gather).index), shape(call_of(gather).x)
    alone = _computed_alone(value, products, origins, rows(count))
    operations = sum(_operations(product) * (keep / count if product in alone else 1) for product in products)
    return keep < count and operations <= OPERATIONS_PER_BYTE * _bytes(value)


def _computed_alone(
    value: fx.Node, products: set[fx.Node], origins: Mapping[fx.Node, fx.Node], rows: Rows
) -> set[fx.Node]:
    """What of ``value`` and of that which it is computed from has kept rows alone where those of ``value`` are read."""
    found: set[fx.Node] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        operands = rows.operands(current)
        if operands is not None:
            found.add(current)
            waiting += [a for a in operands if a not in found and origins[a] in products]
    return found


def _is_linear(product: fx.Node) -> bool:
    """Whether ``product`` is a linear layer's on 1 bit: it costs less than one of windows of as many channels."""
    return product.target in PACKED and is_plain(product)


def _operations(product: fx.Node) -> float:
    """What computing all of ``product`` again costs, in operations on bits."""
    op = op_of(product)
    assert op is not None
    assert issubclass(op, FqtOp)
    cost = op.bound(*fx.map_arg((product.args, product.kwargs), lambda a: a.meta["val"])).cost()
    return cost.bit_ops + FLOAT_OPERATION * cost.flops


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    return math.prod(value.shape) * value.element_size() if isinstance(value, torch.Tensor) else 0
