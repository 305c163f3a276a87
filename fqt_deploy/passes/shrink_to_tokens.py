"""Run the part of backward that follows from kept rows alone on these: a branch of ``select-tokens``."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from math import prod

import torch
from torch import fx

from fqt_deploy.core.call import call_of, changed, source_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, replace, replace_results, shape
from fqt_deploy.ops.aten.spellings import SIZED
from fqt_deploy.ops.op import op_of
from fqt_deploy.ops.sample_axes import alignment
from fqt_deploy.ops.traits import LEADING, SampleAxis
from fqt_deploy.passes.annotate_layers import products_of
from fqt_deploy.passes.batch_axis import gather_samples, scatter_samples
from fqt_deploy.passes.insert_scq import random_key
from fqt_deploy.passes.select_once import unscaled_gradient
from fqt_deploy.passes.sink_scatter import is_zero

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class Branch:
    """Layers that read the same input, and select the same rows of their gradients.

    Attributes:
        gradients: of the layers' outputs, [N, outputs] each, in graph order.
    """

    gradients: tuple[fx.Node, ...]

    @property
    def rows(self) -> int:
        """Number of rows N."""
        return shape(self.gradients[0])[0]


@dataclass(frozen=True)
class _Kept:
    """The kept rows of a value that is zero in all others.

    Attributes:
        value: [K, ...] or [batch, k, 1, ..., ...].
        lead: how many axes, from the first on, hold the rows of the value itself: [N, ...] or [batch, tokens, ...].
        results: how many results of the value, from the first on, have them.
    """

    value: fx.Node
    lead: int
    results: int = 1


@dataclass
class ShrinkToTokens:
    """Rewrites one branch: selects rows of its gradients, and runs on the kept ones what follows from them alone.

    Attributes:
        graph: being rewritten.
        branch: whose rows are selected.
        bits: factor by which they are reduced.
        kept: the values of which only the kept rows are computed.
    """

    graph: TrainingGraph
    branch: Branch
    bits: int
    kept: dict[fx.Node, _Kept] = field(default_factory=dict)
    _scaled: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """The kept rows of the branch's gradients, scaled."""
    _gathered: dict[fx.Node, fx.Node] = field(default_factory=dict)
    _index: fx.Node = field(init=False)
    _slot: fx.Node = field(init=False)

    @property
    def keep(self) -> int:
        """Number of kept rows K."""
        return self.graph.batch * self.keep_of_sample

    @property
    def tokens(self) -> int:
        """Rows of a sample."""
        return self.branch.rows // self.graph.batch

    @property
    def keep_of_sample(self) -> int:
        """Rows that are kept of each sample."""
        return max(1, round(self.tokens / self.bits))

    def run(self, number: int) -> None:
        """Select, and rewrite in graph order the products of the branch and what follows from kept rows alone."""
        products, sums = self._products(), self._sums()
        places = {node: place for place, node in enumerate(self.graph.graph.nodes)}
        readers = [*(self._reader(product) for product in products), *sums]
        first = min(readers, key=places.__getitem__)
        self._bring_forward(first)
        self._select(first, number)
        behind = False
        for node in list(self.graph.graph.nodes):
            behind = behind or node is first
            if not behind or node.op != "call_function":
                continue
            if node in products:
                self._product(node)
            elif node in sums:
                scaled = self._scaled[call_of(node).self]
                replace(self.graph, node, self._copied(node, Emitter(self.graph, node).again(node, **{"self": scaled})))
            elif any(a in self.kept for a in node.all_input_nodes):
                self._sink(node)
        for node in reversed(self.kept):
            if node.users:
                self._scatter(node)
            else:
                self.graph.graph.erase_node(node)

    def _products(self) -> set[fx.Node]:
        """The products that read the branch's gradients, as they are or times the scale of a weight."""
        gradients = self.branch.gradients
        found = {p for p in products_of(self.graph, "weight_grad") if call_of(p).g in gradients}
        return found | {p for p in products_of(self.graph, "input_grad") if unscaled_gradient(p) in gradients}

    def _sums(self) -> set[fx.Node]:
        """The sums over all rows of the branch's gradients, which are the gradients of biases."""
        users = {user for gradient in self.branch.gradients for user in gradient.users}
        return {u for u in users if u.target is aten.sum.dim_IntList and call_of(u).dim == [0]}

    def _reader(self, product: fx.Node) -> fx.Node:
        """The first node of a product that reads a gradient of the branch."""
        return product if call_of(product).g in self.branch.gradients else call_of(product).g

    def _bring_forward(self, first: fx.Node) -> None:
        """Compute all gradients of the branch before ``first``, the first node that is to read kept rows."""
        needed: set[fx.Node] = set()
        pending = list(self.branch.gradients)
        while pending:
            node = pending.pop()
            if node not in needed:
                needed.add(node)
                pending += node.all_input_nodes
        moved, node = [], first
        while node.op != "output":
            if node in needed:
                moved.append(node)
            node = node.next
        for node in moved:
            first.prepend(node)

    def _select(self, first: fx.Node, number: int) -> None:
        """Draw the rows by the norms of all gradients of the branch together, before ``first``."""
        emit = Emitter(self.graph, first, role="select")
        squares = [emit(aten.sum.dim_IntList, emit(aten.mul.Tensor, g, g), [1]) for g in self.branch.gradients]
        total = squares[0]
        for other in squares[1:]:
            total = emit(aten.add.Tensor, total, other)
        key = random_key(emit, self.graph, len(self.graph.layers) + number, "select_tokens")
        scores = emit(aten.sqrt.default, total)
        drawn = emit(fqt.select_sampled.default, scores, key, self.keep_of_sample, self.graph.batch)
        self._index, self._slot = emit.item(drawn, 0), emit.item(drawn, 1)
        weight = emit(aten.view.default, emit.item(drawn, 2), [self.keep, 1])
        for gradient in self.branch.gradients:
            rows = emit(fqt.gather_rows.default, gradient, self._index)
            scaled = self._scaled[gradient] = emit(aten.mul.Tensor, rows, weight)
            scaled.meta["kept"] = self.keep_of_sample

    def _product(self, node: fx.Node) -> None:
        """Run a product that reads a gradient of the branch on the kept rows."""
        emit, call = Emitter(self.graph, node), call_of(node)
        if node.meta["direction"] == "weight_grad":
            x = self._gather(emit, call.x, 1)
            replace(self.graph, node, self._copied(node, emit.again(node, x=x, g=self._scaled[call.g])))
            return
        scale = call_of(call.g)
        scaled = emit.again(call.g, **{"self": self._scaled[scale.self]})
        scaled.meta["kept"] = self.keep_of_sample
        self.kept[node] = _Kept(self._copied(node, emit.again(node, g=scaled)), 1)

    def _copied(self, node: fx.Node, copy: fx.Node) -> fx.Node:
        """``copy``, which runs on the kept rows, with what ``node`` is known for."""
        copy.meta.update({k: node.meta[k] for k in ("record", "direction") if k in node.meta})
        copy.meta["kept"] = self.keep_of_sample
        return copy

    def _sink(self, node: fx.Node) -> None:
        """Rewrite ``node`` to run on kept rows, if its definition allows it."""
        sources = {a: self.kept[a] for a in node.all_input_nodes if a in self.kept}
        leads = {source.lead for source in sources.values()}
        if len(leads) > 1:
            return
        (lead,) = leads
        if node.target is operator.getitem:
            source, index = sources[call_of(node).source], call_of(node).index
            self.kept[node] = _Kept(Emitter(self.graph, node).item(source.value, index), lead)
        elif node.target is aten.view.default:
            self._view(node, sources[source_of(node)])
        elif node.target is fqt.attention_backward.default:
            self._attention(node)
        else:
            self._call(node, sources, lead)

    def _view(self, node: fx.Node, source: _Kept) -> None:
        """A view keeps the rows if some axes of its own, from the first on, hold as many, the first one samples."""
        extents = shape(node)
        lead = next((n for n in range(1, len(extents) + 1) if prod(extents[:n]) == self.branch.rows), None)
        if lead is not None and (lead == 1 or extents[0] == self.graph.batch):
            size = [*self._leading(lead), *extents[lead:]]
            copy = self._copied(node, Emitter(self.graph, node)(aten.view.default, source.value, size))
            self.kept[node] = _Kept(copy, lead)

    def _attention(self, node: fx.Node) -> None:
        """Attention's backward goes over the kept queries of each sample, and all keys.

        Numbers that dropout draws belong to places among all queries: there it goes over all.
        """
        call = call_of(node)
        gradient = self.kept.get(call.gradient)
        if gradient is None or gradient.lead != 2 or call.draws is not None:
            return
        emit = Emitter(self.graph, node)
        first = emit(aten.permute.default, call.logsumexp, [0, 2, 1])  # [batch, tokens, heads]
        logsumexp = emit(aten.permute.default, self._gather(emit, first, 2), [0, 2, 1])
        mask = self._mask(emit, call.mask, causal=call.causal, keys=shape(call.k)[1])
        changes = {"gradient": gradient.value, "q": self._gather(emit, call.q, 2), "mask": mask}
        copy = emit.again(node, **changes, logsumexp=logsumexp, causal=False)
        queries = scatter_samples(
            emit, emit(aten.view.default, emit.item(copy, 0), [self.keep, -1]), LEADING, self._slot, self.keep
        )
        results = [emit(aten.view.default, queries, shape(call.q)), emit.item(copy, 1), emit.item(copy, 2)]
        replace_results(self.graph, node, results)

    def _mask(self, emit: Emitter, mask: fx.Node | None, *, causal: bool, keys: int) -> fx.Node | None:
        """What is added to the scores of the kept queries, [batch or 1, heads or 1, kept or 1, keys]."""
        batch, keep = self.graph.batch, self.keep_of_sample
        if mask is not None and shape(mask)[2] > 1:
            each = emit(aten.expand.default, mask, [batch, *shape(mask)[1:]])
            first = emit(aten.permute.default, each, [0, 2, 1, 3])  # [batch, tokens, heads, keys]
            mask = emit(aten.permute.default, self._gather(emit, first, 2), [0, 2, 1, 3])
        if not causal:
            return mask
        within = emit(aten.remainder.Scalar, self._index, self.tokens)
        query = emit(aten.view.default, within, [batch, 1, keep, 1])
        key = emit(aten.view.default, emit(aten.arange.default, keys, dtype=torch.int32), [1, 1, 1, keys])
        later = emit(aten.gt.Tensor, key, query)
        none, never = (emit(aten.full.default, [], value, dtype=torch.float32) for value in (0.0, -math.inf))
        order = emit(aten.where.self, later, never, none)
        return order if mask is None else emit(aten.add.Tensor, order, mask)

    def _leading(self, lead: int) -> list[int]:
        """The extents of so many axes that hold the kept rows: all of them, or those of each sample."""
        return [self.keep] if lead == 1 else [self.graph.batch, self.keep_of_sample, *[1] * (lead - 2)]

    def _call(self, node: fx.Node, sources: dict[fx.Node, _Kept], lead: int) -> None:
        """A call keeps the rows if it computes each from the same row of its operands, or sums over all."""
        extents = shape(next(iter(sources)))[:lead]
        if lead == 1:
            found = [alignment(node, dict.fromkeys(sources, LEADING), self.branch.rows)]
        else:
            found = [
                alignment(node, dict.fromkeys(sources, SampleAxis(axis)), extent) for axis, extent in enumerate(extents)
            ]
        aligned = [each for each in found if each is not None]
        if len(aligned) < lead:
            return
        places = [SampleAxis(axis) for axis in range(lead)]
        others = {a for each in aligned for a in each.operands} - sources.keys()
        if any([each.operands.get(a) for each in aligned] != places for a in others):
            return  # it has some of the axes, or has them elsewhere
        results = [each.result for each in aligned]
        summed, rows = results == [None] * lead, results == places
        if not summed and not (rows and self._stays_zero(node)):
            return
        count = min(each.results for each in aligned)
        if rows and any(call_of(user).index >= count for user in node.users if user.target is operator.getitem):
            return
        copy = self._on_kept(node, others, lead)
        if summed:
            replace(self.graph, node, copy)
        else:
            self.kept[node] = _Kept(copy, lead, count)

    def _stays_zero(self, node: fx.Node) -> bool:
        """Whether the result is zero in rows in which operands are."""
        op = op_of(node)
        return op is not None and op.traits.zero.holds(call_of(node), lambda a: a in self.kept or is_zero(a))

    def _on_kept(self, node: fx.Node, others: set[fx.Node], lead: int) -> fx.Node:
        """A copy of ``node`` that reads the kept rows of its operands."""
        emit = Emitter(self.graph, node)

        def operand(a: fx.Node) -> fx.Node:
            if a in self.kept:
                return self.kept[a].value
            return self._gather(emit, a, lead) if a in others else a

        sizes = {"size": [*self._leading(lead), *shape(node)[lead:]]} if node.target in SIZED else {}
        args, kwargs = changed(node, sizes)
        return self._copied(node, emit(node.target, *fx.map_arg(args, operand), **fx.map_arg(kwargs, operand)))

    def _gather(self, emit: Emitter, value: fx.Node, lead: int) -> fx.Node:
        """The kept rows of a value that was computed for all; gathered once."""
        if value not in self._gathered:
            extents, rows = shape(value), self.branch.rows
            flat = value if lead == 1 else emit(aten.view.default, value, [rows, prod(extents[lead:])])
            taken = gather_samples(emit, flat, LEADING, rows, self._index, self.keep)
            whole = taken if lead == 1 else emit(aten.view.default, taken, [*self._leading(lead), *extents[lead:]])
            self._gathered[value] = whole
        return self._gathered[value]

    def _scatter(self, node: fx.Node) -> None:
        """All rows of ``node`` for the users that need them."""
        kept = self.kept[node]
        extents = shape(node)
        emit = Emitter(self.graph, node)
        flat = emit(aten.view.default, kept.value, [self.keep, prod(extents[kept.lead :])])
        scattered = scatter_samples(emit, flat, LEADING, self._slot, self.keep)
        replace(self.graph, node, emit(aten.view.default, scattered, extents))
