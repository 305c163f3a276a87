"""Pass and Pipeline: the whole pass infrastructure."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

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
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = True
    produces: ClassVar[Stage | None] = None
    ensures: ClassVar[tuple[Invariant, ...]] = ()

    @abstractmethod
    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite ``graph`` in place and return whether it changed."""


@dataclass(frozen=True)
class Pipeline:
    """Passes in order, with the invariants checked before the first and after each."""

    passes: tuple[Pass, ...]
    invariants: tuple[Invariant, ...] = ()
    observers: tuple[Observer, ...] = ()

    def run(self, graph: TrainingGraph) -> TrainingGraph:
        """Run every pass; an error says in which pass, and after which others, it arose."""
        self._check(graph, self.invariants)
        for i, current in enumerate(self.passes):
            start = time.perf_counter()
            try:
                changed = current.run(graph)
                if current.produces is not None:
                    graph.stage = current.produces
                if changed:
                    graph.graph.eliminate_dead_code()
                graph.graph.lint()
                self._check(graph, (*self.invariants, *current.ensures))
            except Exception as error:
                error.add_note(f"in pass {current.name!r}, after {[p.name for p in self.passes[:i]]}")
                raise
            for observe in self.observers:
                observe(current.name, graph, time.perf_counter() - start)
        graph.module.recompile()
        return graph

    @staticmethod
    def _check(graph: TrainingGraph, invariants: tuple[Invariant, ...]) -> None:
        for invariant in invariants:
            invariant(graph)
