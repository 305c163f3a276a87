"""How to take some of the samples of a batch, and where rewrites find the values that have them."""

from __future__ import annotations

from math import prod

import torch
from torch import fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import Emitter, TrainingGraph, shape
from fqt_deploy.ops.traits import LEADING, SampleAxis

aten = torch.ops.aten
fqt = torch.ops.fqt


def resized(extents: list[int], where: SampleAxis, samples: int, keep: int) -> list[int]:
    """``extents`` with ``keep`` samples in the place of ``samples``."""
    return [*extents[: where.axis], extents[where.axis] // samples * keep, *extents[where.axis + 1 :]]


def descendants(graph: TrainingGraph, *roots: fx.Node) -> set[fx.Node]:
    """All call nodes that depend on one of ``roots``, without these."""
    found, pending = set(roots), list(roots)
    while pending:
        for user in pending.pop().users:
            if user.op == "call_function" and user not in found:
                found.add(user)
                pending.append(user)
    return found - set(roots)


def samples_first(emit: Emitter, value: fx.Node, where: SampleAxis, samples: int) -> fx.Node:
    """``value`` as [samples, groups outside of them, elements inside]; [samples, elements] if samples are outermost."""
    extents = shape(value)
    outside = prod(extents[: where.axis]) * where.outer
    inside = prod(extents) // (outside * samples)
    if outside == 1:
        return emit(aten.view.default, value, [samples, inside])
    return emit(aten.permute.default, emit(aten.view.default, value, [outside, samples, inside]), [1, 0, 2])


def samples_back(emit: Emitter, rows: fx.Node, extents: list[int]) -> fx.Node:
    """``rows``, which are as ``samples_first`` makes them, in the shape ``extents``."""
    if len(shape(rows)) == 3:
        rows = emit(aten.permute.default, rows, [1, 0, 2])
    return emit(aten.view.default, rows, extents)


def gather_samples(
    emit: Emitter, value: fx.Node, where: SampleAxis, samples: int, index: fx.Node, keep: int
) -> fx.Node:
    """The ``keep`` samples ``index`` of ``value``, which has ``samples`` of them ``where``."""
    extents = shape(value)
    kept = resized(extents, where, samples, keep)
    if where == LEADING and extents[0] == samples and len(extents) != 2:
        return emit(fqt.gather_rows.default, value, index)
    if where == LEADING:
        grouped = emit(aten.view.default, value, [samples, extents[0] // samples, *extents[1:]])
        return emit(aten.view.default, emit(fqt.gather_rows.default, grouped, index), kept)
    if value.target in (fqt.sign.default, fqt.activation_levels.default):
        # signs of kept samples are packed again: words hold no single sample
        return emit.again(value, x=gather_samples(emit, call_of(value).x, where, samples, index, keep))
    rows = emit(fqt.gather_rows.default, samples_first(emit, value, where, samples), index)
    return samples_back(emit, rows, kept)


def scatter_samples(emit: Emitter, value: fx.Node, where: SampleAxis, slot: fx.Node, keep: int) -> fx.Node:
    """All samples, by their ``slot`` among the ``keep`` that ``value`` has ``where``; zero for the others."""
    extents, samples = shape(value), shape(slot)[0]
    if where != LEADING:
        rows = emit(fqt.scatter_rows.default, samples_first(emit, value, where, keep), slot)
        return samples_back(emit, rows, resized(extents, where, keep, samples))
    if extents[0] == keep:
        return emit(fqt.scatter_rows.default, value, slot)
    grouped = emit(aten.view.default, value, [keep, extents[0] // keep, *extents[1:]])
    scattered = emit(fqt.scatter_rows.default, grouped, slot)
    return emit(aten.view.default, scattered, resized(extents, where, keep, samples))
