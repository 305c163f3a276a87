"""Several shapes of batches in one artifact: training steps that share their state and decide alike."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Iterable, Sequence

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import StateTensor, TrainingGraph
from fqt_deploy.core.manifest import Bucket
from fqt_deploy.core.options import CompileOptions

_CONSTANT = "buffer/constant_"
"""Beginning of the name of a tensor that belongs to no module: it may be of the shape of a batch, as positions are."""


def same_decisions(options: CompileOptions, first: TrainingGraph) -> CompileOptions:
    """The options with which another shape runs exactly those layers in 1 bit that ``first`` does."""
    chosen = tuple(glob.escape(record.path) for record in first.layers if record.binarized)
    return dataclasses.replace(options, include=chosen, exclude=() if chosen else ("*",) if first.layers else ())


def check_same_step(first: TrainingGraph, other: TrainingGraph) -> None:
    """Refuse a step for another shape that is not the same step on the same state.

    Raises:
        FqtError: FQT103 if a layer, the range of a column or the state depends on the shape of the batch.
    """
    decisions = [[(r.path, r.binarized, r.grid, r.weight_bits) for r in graph.layers] for graph in (first, other)]
    if decisions[0] != decisions[1]:
        differing = [a[0] for a, b in zip(*decisions, strict=False) if a != b] or ["their number"]
        raise FqtError(
            f"for {_shapes(other)} layers run otherwise than for {_shapes(first)}: {', '.join(differing)}",
            code="FQT103",
            hint="exclude these layers",
        )
    for ours, theirs in zip(first.signature, other.signature, strict=True):
        if ours.columns != theirs.columns:
            raise FqtError(
                f"columns of {ours.name} have ranges of their own, which differ for {_shapes(other)}",
                code="FQT103",
                hint="give all batches as many columns",
            )
    layouts = [
        {name: (tuple(t.initial.shape), t.initial.dtype, t.role) for name, t in _lasting(graph)}
        for graph in (first, other)
    ]
    if layouts[0] != layouts[1]:
        differing = [name for name in {**layouts[0], **layouts[1]} if layouts[0].get(name) != layouts[1].get(name)]
        raise FqtError(
            f"the state depends on the shape of the batch: {', '.join(differing)} for {_shapes(other)}",
            code="FQT103",
            hint="keep in buffers what is the same for every batch",
        )


def shared_state(graphs: Iterable[TrainingGraph]) -> dict[str, StateTensor]:
    """The state of steps that passed ``check_same_step``: of the first, and the constants that others add."""
    state: dict[str, StateTensor] = {}
    for graph in graphs:
        state |= {name: tensor for name, tensor in graph.state.items() if name not in state}
    return state


def describe_buckets(graphs: Sequence[tuple[TrainingGraph, TrainingGraph]]) -> tuple[Bucket, ...]:
    """The manifest's buckets for lowered steps and predictions; none for a single one."""
    if len(graphs) == 1:
        return ()
    return tuple(
        Bucket(
            tuple(spec.shape for spec in train.signature),
            tuple(int(extent) for extent in predict.output("logits").meta["val"].shape),
            tuple(name for name in train.inputs if name in train.state),
            tuple(name for name in predict.inputs if name in predict.state),
        )
        for train, predict in graphs
    )


def _lasting(graph: TrainingGraph) -> list[tuple[str, StateTensor]]:
    return [(name, tensor) for name, tensor in graph.state.items() if not name.startswith(_CONSTANT)]


def _shapes(graph: TrainingGraph) -> str:
    return ", ".join(f"{spec.name} {list(spec.shape)}" for spec in graph.signature)
