"""Compute products of forward again in backward, of the kept samples alone, instead of keeping those of all.

Before::

    %z    = fqt.level_conv2d(%codes, %weight_bits, ...)           # forward, all samples; kept until backward
    %rows = fqt.gather_rows(gelu(%z * %scale), %index)            # backward
    %kept = fqt.gather_rows(view(%codes), %index)                 # backward, for the weight's gradient

After::

    %z    = fqt.level_conv2d(%codes, %weight_bits, ...)           # forward; free after the next layer
    %kept = fqt.gather_rows(%codes, %index)                       # backward, for both
    %z2   = fqt.level_conv2d(%kept, %weight_bits, ...)            # as many samples as are kept
    %rows = gelu(%z2 * %scale)

Where a fifth of the samples is kept it costs a fifth of the product. So is a sum of residuals, if one of its two parts
is such a product and the other is kept: every second sum of a transformer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, shape
from fqt_deploy.ops.aten.spellings import SIZED
from fqt_deploy.ops.op import FqtOp, Kind, op_of
from fqt_deploy.ops.sample_axes import following
from fqt_deploy.ops.traits import SampleAxis
from fqt_deploy.passes.batch_axis import gather_samples, resized
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
fqt = torch.ops.fqt

_PACKED = (fqt.binary_conv2d.default, fqt.level_conv2d.default)
"""The 1-bit products of forward: their operands have the axes of what was packed."""
_PRODUCTS = (*_PACKED, fqt.conv2d.default)
"""The products whose operands are kept, or there, anyhow."""
_PACKING = (fqt.pack_signs.default, fqt.pack_levels.default)
_OWN = ("layer", "stack_trace", "seq_nr")
"""What a copy tells of its origin as the value that is copied does."""
SMALLEST = 2 << 20
"""Lower bound of the bytes of a value that is computed again."""
SMALL = 8
"""A value is small that has so many times fewer bytes than the one that is computed from it."""
OPERATIONS_PER_BYTE = 512
"""Upper bound of the operations on bits for each byte that need not be kept."""
FLOAT_OPERATION = 40
"""One operation on floats costs about as much as this many on bits."""


@dataclass(frozen=True)
class RecomputeKept(Pass):
    """Give backward its own copy of the products of forward that it reads of some samples alone.

    Attributes:
        always: whether to do so at any cost; otherwise where it is cheap for what it saves.
    """

    name = "recompute-kept"

    always: bool = False

    def run(self, graph: TrainingGraph) -> bool:
        """Decide for each value by its readers, then rewrite what reads the chosen ones in the order of backward."""
        axes, origins = _sample_axes(graph), _origins(graph)
        readers: dict[fx.Node, set[fx.Node]] = {}
        computed: set[fx.Node] = set()
        for value in axes:
            products = _products(value, origins, readers)
            found = _readers(value, axes, origins) if products else None
            if found and (self.always or _pays(value, products, found, graph.batch)):
                readers[value] = found
                computed |= {value, *products}
        rewrite = _Rewrite(graph, axes, origins, computed)
        gathers = {gather for found in readers.values() for gather in found}
        for node in list(graph.graph.nodes):
            if node in gathers:
                rewrite.run(node)
        return bool(readers)


def _sample_axes(graph: TrainingGraph) -> dict[fx.Node, SampleAxis]:
    """Where values have their samples, those of packed products included."""
    found = dict.fromkeys(graph.batch_inputs(), SampleAxis(0))
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target is fqt.gather_rows.default:
            continue
        if node.target in _PACKING or (node.target in _PACKED and _keeps_axis(node, found)):
            where = found.get(next(iter(node.all_input_nodes)))
        else:
            where = following(node, found, graph.batch)
        if where is not None and (node.target not in _PACKING or where.outer == 1):
            found[node] = where
    return found


def _keeps_axis(node: fx.Node, found: Mapping[fx.Node, SampleAxis]) -> bool:
    """Whether a product has the samples where its operand has them: a window of several positions spans no samples."""
    call, where = call_of(node), found.get(node.all_input_nodes[0])
    plain = list(call.kernel) == list(call.stride) == [1, 1] and list(call.padding) == [0, 0]
    return where is not None and (where.axis == 0 or plain)


def _products(value: fx.Node, origins: Mapping[fx.Node, fx.Node], chosen: Collection[fx.Node]) -> set[fx.Node]:
    """The products by which ``value``, if it is large, is computed from what is kept: its own, or one that is added.

    Of two sums, one of which is added to the other, one is kept: not both are ``chosen``.
    """
    if not _is_forward(value) or _bytes(value) < SMALLEST:
        return set()
    if value.target in _PRODUCTS:
        return {value}
    if not _is_elementwise(value) or origins[value] is not value:
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
        if _is_forward(node) and _is_elementwise(node):
            large = _large_parts(node, found)
            if len(large) == 1:
                (found[node],) = large
    return found


def _large_parts(node: fx.Node, origins: Mapping[fx.Node, fx.Node]) -> set[fx.Node]:
    """The large values from which ``node`` is computed, by the ``origins`` of its operands."""
    return {origins[operand] for operand in node.all_input_nodes if _bytes(operand) * SMALL > _bytes(node)}


def _readers(
    value: fx.Node, axes: Mapping[fx.Node, SampleAxis], origins: Mapping[fx.Node, fx.Node]
) -> set[fx.Node] | None:
    """What gathers samples in backward of values that are computed from ``value``; None if it is read otherwise."""
    found: set[fx.Node] = set()
    seen = {value}
    waiting = [value]
    while waiting:
        current = waiting.pop()
        for user in current.users:
            if user in seen:
                continue
            seen.add(user)
            if _is_forward(user):
                if origins[user] is value:
                    waiting.append(user)
            elif user.target is fqt.gather_rows.default and call_of(user).x is current:
                found.add(user)
            elif _is_elementwise(user) and user in axes:
                waiting.append(user)
            else:
                return None
    return found if len({call_of(node).index for node in found}) == 1 else None


def _pays(value: fx.Node, products: set[fx.Node], readers: set[fx.Node], batch: int) -> bool:
    """Whether computing the kept samples of ``products`` again costs little for ``value``, which need not be kept."""
    (index,) = {call_of(node).index for node in readers}
    (keep,) = shape(index)
    operations = 0.0
    for product in products:
        op = op_of(product)
        assert op is not None
        assert issubclass(op, FqtOp)
        cost = op.bound(*fx.map_arg((product.args, product.kwargs), lambda a: a.meta["val"])).cost()
        operations += (cost.bit_ops + FLOAT_OPERATION * cost.flops) * keep / batch
    return keep < batch and operations <= OPERATIONS_PER_BYTE * _bytes(value)


@dataclass
class _Rewrite:
    """Moves gathers from values to what they are computed from.

    Attributes:
        graph: being rewritten.
        axes: where values have their samples.
        origins: as ``_origins`` finds them.
        computed: the products, and sums of them, that are computed again.
    """

    graph: TrainingGraph
    axes: Mapping[fx.Node, SampleAxis]
    origins: Mapping[fx.Node, fx.Node]
    computed: set[fx.Node]
    _copies: dict[tuple[fx.Node, fx.Node], fx.Node] = field(default_factory=dict)
    _depends: dict[fx.Node, bool] = field(default_factory=dict)

    def run(self, gather: fx.Node) -> None:
        """Compute the samples that ``gather`` takes instead of taking them."""
        call = call_of(gather)
        replace(self.graph, gather, self._kept(call.x, call.index, gather))

    def _kept(self, value: fx.Node, index: fx.Node, anchor: fx.Node) -> fx.Node:
        """The samples ``index`` of ``value``, or all of it if it has none, computed before ``anchor``."""
        if value not in self.axes:
            return value
        if (value, index) not in self._copies:
            self._copies[value, index] = self._copy(value, index, anchor)
        return self._copies[value, index]

    def _copy(self, value: fx.Node, index: fx.Node, anchor: fx.Node) -> fx.Node:
        (keep,) = shape(index)
        where, batch = self.axes[value], self.graph.batch
        others = self._gathers(value, index) if value.target in _PACKING else []
        anchor = min([anchor, *others])
        own = {name: value.meta[name] for name in _OWN if name in value.meta}
        emit = Emitter(self.graph, anchor, **own, phase="backward", role="rematerialize", samples=keep)
        if self._is_computed(value):
            operands = {operand: self._kept(operand, index, anchor) for operand in value.all_input_nodes}
            if value.target in SIZED:
                return emit(value.target, *operands.values(), resized(shape(value), where, batch, keep))
            args, kwargs = fx.map_arg((value.args, value.kwargs), operands.__getitem__)
            return emit(value.target, *args, **kwargs)
        rows = gather_samples(emit, value, where, batch, index, keep)
        for other in others:
            replace(self.graph, other, Emitter(self.graph, other)(aten.view.default, rows, shape(other)))
        return rows

    def _is_computed(self, value: fx.Node) -> bool:
        """Whether the samples of ``value`` are computed from those of a product that is computed again."""
        if value not in self._depends:
            if _is_forward(value):
                found = self.origins[value] in self.computed
            else:
                found = _is_elementwise(value) and any(map(self._is_computed, value.all_input_nodes))
            self._depends[value] = found
        return self._depends[value]

    def _gathers(self, packed: fx.Node, index: fx.Node) -> list[fx.Node]:
        """What else gathers the same samples of ``packed``: weight's gradients, also of other layers that read it."""
        views = [packed, *(user for user in packed.users if user.target is aten.view.default)]
        users = [user for view in views for user in view.users if user.target is fqt.gather_rows.default]
        return [user for user in users if call_of(user).index is index]


def _is_forward(node: fx.Node) -> bool:
    return node.op == "call_function" and node.meta.get("phase") == "forward"


def _is_elementwise(node: fx.Node) -> bool:
    op = op_of(node)
    return op is not None and op.traits.kind is Kind.ELEMENTWISE and node.target is not fqt.gather_rows.default


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    return math.prod(value.shape) * value.element_size() if isinstance(value, torch.Tensor) else 0
