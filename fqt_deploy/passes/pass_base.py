"""Pass and Pipeline: the whole pass infrastructure."""

from __future__ import annotations

import operator
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.diagnostics import FqtError, InvariantError, together
from fqt_deploy.core.graph import Stage, TrainingGraph

Invariant = Callable[[TrainingGraph], None]
"""Raises InvariantError, naming the offending node, if the graph is malformed."""

Observer = Callable[[str, TrainingGraph, float], None]
"""Called after each pass with the pass name, the graph and the seconds it took."""


@dataclass(frozen=True)
class Pass(ABC):
    """A named in-place rewrite of a TrainingGraph; its options are its dataclass fields.

    The graph satisfies its stage's invariants before and after ``run``, not necessarily during it.

    Attributes:
        name: as shown by ``--list-passes`` and accepted by ``--print-after``.
        exact: the rewrite computes the same numbers (up to float rounding); checked by ``--verify numerics``.
        produces: the stage that the graph is in afterwards, when the pass changes it.
        ensures: facts that hold once this pass has run.
        settles: what earlier passes refused is raised, all at once, after this pass: no later one may meet it.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = True
    produces: ClassVar[Stage | None] = None
    ensures: ClassVar[tuple[Invariant, ...]] = ()
    settles: ClassVar[bool] = False

    @abstractmethod
    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite ``graph`` in place and return whether it changed."""


def rewrite_each(graph: TrainingGraph, nodes: Iterable[fx.Node], rewrite: Callable[[fx.Node], None]) -> None:
    """Rewrite every one of ``nodes``; one that an ``FqtError`` refuses stays, for the pipeline to tell all at once.

    What a refused node hands to its backward has another form than ours: its backward stays too, and is not told of.
    """
    for node in nodes:
        if any(_of_refused(operand, graph) for operand in node.all_input_nodes):
            continue
        try:
            rewrite(node)
        except InvariantError:
            raise
        except FqtError as error:
            graph.refused[node] = error


def _of_refused(operand: fx.Node, graph: TrainingGraph) -> bool:
    """Whether ``operand`` is a further result of a refused node, such as the positions of a maximum."""
    if operand.target is not operator.getitem:
        return False
    item = call_of(operand)
    return bool(item.source in graph.refused and item.index != 0)


@dataclass(frozen=True)
class Pipeline:
    """Passes in order, with the invariants checked before the first and after each."""

    passes: tuple[Pass, ...]
    invariants: tuple[Invariant, ...] = ()
    observers: tuple[Observer, ...] = ()

    def run(self, graph: TrainingGraph) -> TrainingGraph:
        """Run every pass; an error says in which pass, and after which others, it arose.

        What passes have refused is raised, all at once, after the next pass that ``settles``, or after the last.
        """
        self._check(graph, self.invariants)
        for i, current in enumerate(self.passes):
            start = time.perf_counter()
            try:
                self._run(current, graph)
                if graph.refused and (current.settles or i == len(self.passes) - 1):
                    places = {node: place for place, node in enumerate(graph.graph.nodes)}
                    refused = sorted(graph.refused.items(), key=lambda item: places.get(item[0], len(places)))
                    raise together([error for _, error in refused])
            except Exception as error:
                error.add_note(f"in pass {current.name!r}, after {[p.name for p in self.passes[:i]]}")
                raise
            for observe in self.observers:
                observe(current.name, graph, time.perf_counter() - start)
        graph.module.recompile()
        return graph

    def _run(self, current: Pass, graph: TrainingGraph) -> None:
        """Run one pass, and check the graph unless it holds what a pass has refused.

        What a pass leaves as it was, and in the stage in which it was, has been checked already.
        """
        changed = current.run(graph)
        if current.produces is not None:
            graph.stage = current.produces
        if changed:
            try:
                graph.graph.eliminate_dead_code(_stays)  # after it has linted the graph
            except RuntimeError as error:  # whose further lines are the whole graph
                raise InvariantError(str(error).partition("\n")[0]) from None
        if not graph.refused:
            known = () if changed or current.produces is not None else self.invariants
            self._check(graph, tuple(i for i in (*self.invariants, *current.ensures) if i not in known))

    @staticmethod
    def _check(graph: TrainingGraph, invariants: tuple[Invariant, ...]) -> None:
        for invariant in invariants:
            invariant(graph)


def _stays(node: fx.Node) -> bool:
    """Whether ``node`` is read, or has an effect: PyTorch takes long to say the second, and would say it of all."""
    return bool(node.users) or node.is_impure()
