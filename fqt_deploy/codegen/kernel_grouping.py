"""Which nodes share a kernel: element-wise producers are computed again inside each consumer where that is cheaper.

What a kernel writes is *materialized*; everything else exists only as an expression inside other kernels. So the batch
normalization, activation and sign between two 1-bit convolutions read the integer result and write bits, in one pass.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

import torch
from torch import fx

from fqt_deploy.codegen.inlining_cost import (
    elements,
    is_positional,
    operands_of,
    operations,
    textual_reads,
    users_through_views,
    value_bytes,
    window_size,
)  # fmt: skip
from fqt_deploy.codegen.unrolled_loops import belongs_to_loop
from fqt_deploy.core.call import call_of, source_of
from fqt_deploy.core.graph import TrainingGraph, behind_views
from fqt_deploy.ops.aten.aten_op import moves_elements
from fqt_deploy.ops.op import Kind, op_of
from fqt_deploy.passes.write_state import is_update

aten = torch.ops.aten

MAXIMUM_LEAVES = 14
"""Operands of one kernel: more streams than this defeat the hardware prefetchers."""
MAXIMUM_EXPRESSION = 1200
"""Reads of operands in the text of an expression that may be inlined: what reads it repeats all of them each time."""
MAXIMUM_TEXT = 2000
"""Reads of operands in the text of one kernel: bounds compile time, which grows faster than the text."""
BYTES_PER_OPERATION = 0.2
"""One vector operation on an element costs about as much as moving this many bytes."""
PERMUTE_PENALTY = 4.0
"""A strided read costs this many times a contiguous one."""
OPTIMIZER_PENALTY = 1.5
"""Values of an optimizer are as large as parameters, and alive at the peak of memory: writing must save so much."""


@dataclass(frozen=True)
class Kernel:
    """One kernel call.

    Attributes:
        root: the node whose result is written.
        members: inlined element-wise producers, operands first.
        leaves: materialized operands.
    """

    root: fx.Node
    members: tuple[fx.Node, ...]
    leaves: tuple[fx.Node, ...]

    def numbers(self) -> dict[str, int]:
        """The numbers, by name, that the kernel reads behind its leaves: those in which calls of it differ."""
        op = op_of(self.root)
        return {name: int(getattr(call_of(self.root), name)) for name in op.varying} if op is not None else {}


@dataclass(frozen=True)
class View:
    """A materialized value seen in another shape; no kernel.

    Attributes:
        node: the ``view`` node.
        source: the materialized value.
    """

    node: fx.Node
    source: fx.Node


@dataclass
class _Expression:
    """What evaluating a node inside a kernel costs.

    Attributes:
        leaves: materialized operands.
        operations: scalar operations for all elements.
        reads: how often the text of one element, with all producers inlined, reads an operand.
    """

    leaves: set[fx.Node] = field(default_factory=set)
    operations: float = 0.0
    reads: int = 0


def kind_of(node: fx.Node) -> Kind | None:
    """The kind of the op that ``node`` calls; None for inputs, outputs and ``getitem``."""
    if node.op != "call_function" or node.target is operator.getitem:
        return None
    op = op_of(node)
    assert op is not None, node.target
    return op.traits.kind


def group_kernels(graph: TrainingGraph) -> list[Kernel | View]:
    """Partition the graph into kernels and views, in execution order.

    What all updates wait for, the step count and views of state, comes first.
    An optimizer update runs as soon as nothing else reads the state that it overwrites, so that what its gradient is
    computed from need not be kept; one whose result a kernel reads, such as a sum of gradients whose norm is taken,
    stays where it is. Updates by gradients that are exchanged with other processes follow everything else, in the order
    of the exchanges: backward goes on meanwhile. Other writes of state come last.
    """
    grouping = _Grouping(graph)
    steps: list[Kernel | View] = []
    inputs: list[Kernel | View] = []
    updates: list[Kernel] = []
    behind_exchange: list[tuple[int, Kernel]] = []
    writes: list[Kernel] = []
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem or node not in grouping.materialized:
            continue
        if node in grouping.views:
            if not is_update(node):
                of_input = storage_of(node).op == "placeholder"
                (inputs if of_input else steps).append(View(node, grouping.views[node]))
        elif kind_of(node) is Kind.UPDATE:
            kernel = grouping.kernel(node)
            exchange = grouping.exchange_before(kernel)
            if _is_read(node):
                steps.append(kernel)
            elif exchange is None:
                updates.append(kernel)
            else:
                behind_exchange.append((exchange, kernel))
        elif node.target is aten.clone.default:
            writes.append(grouping.kernel(node))
        else:
            kernel = grouping.kernel(node)
            of_inputs = elements(node) == 1 and all(storage_of(leaf).op == "placeholder" for leaf in kernel.leaves)
            (inputs if of_inputs else steps).append(kernel)
    behind_exchange.sort(key=lambda each: each[0])
    return [*inputs, *_placed(steps, updates), *[kernel for _, kernel in behind_exchange], *writes]


def _is_read(update: fx.Node) -> bool:
    """Whether something else than another update, or the end of the step, reads the new value."""
    return any(
        _is_read(user)
        if user.target in (operator.getitem, aten.view.default)
        else kind_of(user) not in (None, Kind.UPDATE)
        for user in update.users
    )


def _placed(steps: list[Kernel | View], updates: list[Kernel]) -> list[Kernel | View]:
    """``steps`` with each update behind the last step and update that computes or reads one of its operands."""
    last: dict[fx.Node, int] = {}
    for position, step in enumerate(steps):
        touched = (step.node, step.source) if isinstance(step, View) else (step.root, *step.leaves)
        for node in touched:
            last[storage_of(node)] = position
    behind: dict[int, list[Kernel | View]] = {}
    for update in updates:
        place = last[update.root] = max(last.get(storage_of(leaf), -1) for leaf in update.leaves)
        behind.setdefault(place, []).append(update)
    placed = behind.get(-1, [])
    for position, step in enumerate(steps):
        placed += [step, *behind.get(position, [])]
    return placed


def overwritten(update: fx.Node) -> list[fx.Node]:
    """The operands that an update replaces by its results, in order."""
    results = update.meta["val"]
    operands = list(call_of(update).values().values())
    return operands[: len(results) if isinstance(results, (tuple, list)) else 1]


def storage_of(node: fx.Node) -> fx.Node:
    """The node whose memory ``node`` lies in: views and results of a tuple have none of their own."""
    return behind_views(node, operator.getitem)


def _evaluations(node: fx.Node, user: fx.Node) -> float:
    """How often ``user`` would compute an element of ``node``: once, or for each of the windows that hold it."""
    windows = window_size(user)
    return 1 if windows == 1 else max(1, windows * elements(user) / max(elements(node), 1))


class _Grouping:
    """Decides, in graph order, which element-wise nodes are materialized."""

    def __init__(self, graph: TrainingGraph) -> None:
        self.state = {graph.placeholder(n) for n in graph.inputs if n in graph.state}
        self.materialized: set[fx.Node] = set()
        self.views: dict[fx.Node, fx.Node] = {}
        self.expressions: dict[fx.Node, _Expression] = {}
        self._exchanged: dict[fx.Node, int] = {}  # places of exchanges, and of those that updates read
        for node in graph.graph.nodes:
            if node.op == "output":
                break
            if kind_of(node) is not Kind.ELEMENTWISE:
                self._shorten(node)
                self.materialized.add(node)
                if kind_of(node) is Kind.EXCHANGE:
                    self._exchanged[node] = len(self._exchanged)
            elif node.target is aten.view.default and source_of(node) in self.materialized:
                self.materialized.add(node)
                self.views[node] = source_of(node)
            else:
                self._shorten(node)
                self.expressions[node] = self._expression(node)
                if node.target is not aten.view.default and self._worth_writing(node):  # a view is what it views
                    self.materialized.add(node)

    def kernel(self, root: fx.Node) -> Kernel:
        """The kernel that writes ``root``."""
        members: list[fx.Node] = []
        leaves: list[fx.Node] = []

        def visit(node: fx.Node) -> None:
            if node in members or node in leaves:
                return
            if node in self.materialized:
                leaves.append(node)
                return
            for operand in node.all_input_nodes:
                visit(operand)
            members.append(node)

        for operand in root.all_input_nodes:
            visit(operand)
        return Kernel(root, tuple(members), tuple(leaves))

    def exchange_before(self, update: Kernel) -> int | None:
        """The last exchange that an update, or another one that it follows, reads; asked in graph order.

        Returns:
            Its place among all exchanges, which begin in graph order; None if there is none.
        """
        sources = {storage_of(leaf) for leaf in update.leaves}
        found = [self._exchanged[node] for node in sources if node in self._exchanged]
        if found:
            self._exchanged[update.root] = max(found)
        return max(found, default=None)

    def _expression(self, node: fx.Node) -> _Expression:
        extent = elements(node)
        result = _Expression(operations=extent * operations(node))
        for position, operand in enumerate(operands_of(node)):
            result.reads += self._reads_through(node, position, operand)
            if operand in self.materialized:
                result.leaves.add(operand)
                continue
            inner = self.expressions[operand]
            reads = extent * window_size(node) / max(elements(operand), 1)
            result.leaves |= inner.leaves
            result.operations += reads * inner.operations
        return result

    def _reads_through(self, node: fx.Node, position: int, operand: fx.Node) -> int:
        """How often the text of ``node`` reads what its operand at ``position`` is computed from."""
        inner = 1 if operand in self.materialized else self.expressions[operand].reads
        return textual_reads(node, position) * inner

    def _shorten(self, node: fx.Node) -> None:
        """Materialize operands of ``node``, those that lengthen its text most first, until it is short enough.

        An operand that is read twice, and whose operands are read twice, and so on, doubles the text each time.
        """
        if kind_of(node) is None:
            return
        while True:
            lengths: dict[fx.Node, int] = {}
            for position, operand in enumerate(operands_of(node)):
                lengths[operand] = lengths.get(operand, 0) + self._reads_through(node, position, operand)
            inlined = [o for o in lengths if o not in self.materialized and self.expressions[o].reads > 1]
            if sum(lengths.values()) <= MAXIMUM_TEXT or not inlined:
                return
            self._materialize(max(inlined, key=lengths.__getitem__))

    def _materialize(self, node: fx.Node) -> None:
        """Write ``node``, or the value that it views, repeats or takes apart, if that is no larger."""
        views: list[fx.Node] = []
        while moves_elements(node):
            (source, *others) = node.all_input_nodes
            if others or source in self.materialized or elements(source) > elements(node):
                break
            views.append(node)
            node = source
        self.materialized.add(node)
        for view in reversed(views):
            self.expressions[view] = self._expression(view)

    def _worth_writing(self, node: fx.Node) -> bool:
        users = users_through_views(node)
        if any(u.op == "output" or kind_of(u) is Kind.PRODUCT for u in users):
            return True
        if any(kind_of(u) is Kind.UPDATE for u in users):
            return len(users) > 1 or not self._computable_in_update(node, users[0])
        expression = self.expressions[node]
        if node.target is aten.clone.default or (expression.leaves and belongs_to_loop(node)):
            return True
        if any(u.target is aten.clone.default for u in users):  # runs after other state may have been written
            return len(expression.leaves & self.state) > (1 if len(users) == 1 else 0)
        if len(expression.leaves) > MAXIMUM_LEAVES or expression.reads > MAXIMUM_EXPRESSION:
            return True
        broadcast = any(kind_of(u) is Kind.ELEMENTWISE and elements(u) > 2 * elements(node) for u in users)
        if broadcast and expression.operations > 0:
            return True
        evaluations = sum(_evaluations(node, user) for user in users)
        if evaluations <= 1:
            return False
        extent = elements(node)
        read: float = sum(min(value_bytes(leaf), 4 * extent) for leaf in expression.leaves)
        if node.target is aten.permute.default:
            read *= PERMUTE_PENALTY
        compute = BYTES_PER_OPERATION * expression.operations
        inlined = len(users) * read + evaluations * compute  # elements of a window that was read are in the cache
        penalty = OPTIMIZER_PENALTY if node.meta.get("phase") == "optimizer" else 1.0
        return inlined > penalty * (read + compute + (len(users) + 1) * value_bytes(node))

    def _computable_in_update(self, node: fx.Node, update: fx.Node) -> bool:
        """Whether gradient ``node`` reads overwritten state only at the element that is being overwritten."""
        own = {storage_of(operand) for operand in overwritten(update)}
        extent = elements(source_of(update))

        def positional(current: fx.Node) -> bool:
            if current in self.materialized:
                return storage_of(current) not in self.state or storage_of(current) in own
            if current.target is not aten.view.default and not is_positional(current):
                return not self._reads(current, self.state)
            operands = [o for o in operands_of(current) if self._reads(o, self.state)]
            return all(elements(o) == extent and positional(o) for o in operands)

        return elements(node) == extent and positional(node)

    def _reads(self, node: fx.Node, state: set[fx.Node]) -> bool:
        leaves = {node} if node in self.materialized else self.expressions[node].leaves
        return any(storage_of(leaf) in state for leaf in leaves)
