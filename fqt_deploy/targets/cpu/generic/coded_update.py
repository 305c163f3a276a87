"""Optimizer updates with moments in 8 bits: block by block, whose new moments stay in registers or on the stack.

New moments of a block are computed once, and wait until their largest are known. Parameter, gradient and codes of a
later block are fetched meanwhile: a processor does not see beyond one block, which is some 450 operations long. The
scales are written behind its codes::

    random numbers of places in a block
    for block in parallel:
        fetch a later block
        random number of the block; new moments; largest of each
        for vector: parameter, codes
        scales
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import tvm_ffi
from tvm import s_tir, tirx

from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.generic.elementwise import LANES, PARALLEL_ELEMENTS, extents

SCALES = 2
"""Number of results, the last ones, that have an element for each block."""
AHEAD = 768
"""Number of elements between one that is updated and one that is fetched."""
LINE = 64
"""Number of bytes of a line of the cache."""


class CodedUpdateRule:
    """Schedules every update of moments in 8 bits."""

    ops: ClassVar[frozenset[str]] = frozenset({"coded_adam_update"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """Compute all stages of one block, write its new values over the old, then its scales."""
        without, scales = _without_scales(function)
        schedule = s_tir.Schedule(without)
        count = int(function.attrs["fqt.outputs"]) - SCALES
        children = schedule.get_child_blocks(schedule.get_sblock("root"))
        update, blocks = children[-count], [int(extent) for extent in function.params[-1].shape]
        shape = extents(schedule, update)
        *rows, last = schedule.get_loops(update)
        block, _, lanes = schedule.split(last, [blocks[-1], None, LANES])
        outer = schedule.fuse(*rows, block)
        if math.prod(shape) >= PARALLEL_ELEMENTS:
            schedule.parallel(outer)
        for stage in reversed(children[:-count]):
            _place(schedule, stage, outer, shape)
        schedule.vectorize(lanes)
        leaves = function.params[: -count - SCALES]
        read = [leaf for leaf in leaves if [int(extent) for extent in leaf.shape] == shape]
        number = schedule.get(outer).loop_var
        fetches = _fetches(read, shape[-1] // blocks[-1], number)
        whole = _with_fetches_and_scales(schedule.mod["main"], number, fetches, scales)
        return whole.with_body(tvm_ffi.structural_map(whole.body, (tirx.For, _maximum_of_vector)))


def _place(schedule: Any, stage: Any, block: Any, shape: list[int]) -> None:
    """Compute ``stage`` before the parameter and the codes of a block are written."""
    name = str(schedule.get(stage).name_hint)
    if name.endswith("_correction"):
        return
    if name.endswith("_places"):
        schedule.vectorize(schedule.split(schedule.get_loops(stage)[-1], [None, LANES])[-1])
        return
    schedule.compute_at(stage, block, preserve_unit_loops=True)
    if extents(schedule, stage) == shape:
        schedule.vectorize(schedule.split(schedule.get_loops(stage)[-1], [None, LANES])[-1])
    elif name.endswith("_partial"):
        lane, step = schedule.get_loops(stage)[-2:]
        schedule.reorder(step, lane)
        schedule.vectorize(lane)
        initial = schedule.decompose_reduction(stage, step)
        schedule.vectorize(schedule.get_loops(initial)[-1])


def _without_scales(function: tirx.PrimFunc) -> tuple[tirx.PrimFunc, list[Any]]:
    """The function without the stages that write scales, and these: schedules cannot join what reads one stage."""
    realize = function.body
    root = realize.block
    statements = list(root.body.seq)
    body = tirx.SeqStmt(statements[:-SCALES])
    block = s_tir.SBlock(
        root.iter_vars, root.reads, root.writes, root.name_hint, body, root.init, root.alloc_buffers,
        root.match_buffers, root.annotations,
    )  # fmt: skip
    found: list[Any] = []
    for statement in statements[-SCALES:]:
        tvm_ffi.structural_walk(statement, (s_tir.SBlock, found.append))
    return function.with_body(s_tir.SBlockRealize(realize.iter_values, realize.predicate, block)), found


def _with_fetches_and_scales(function: tirx.PrimFunc, outer: Any, fetches: Any, scales: list[Any]) -> tirx.PrimFunc:
    """The function with ``fetches`` at the begin of the loop ``outer`` over blocks, and ``scales`` at its end."""

    def rewrite(loop: Any) -> Any:
        if not loop.loop_var.same_as(outer):
            return loop
        body = tirx.SeqStmt([fetches, loop.body, *(_of_one_block(scale, outer) for scale in scales)])
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, loop.annotations)

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, rewrite)))


def _fetches(arrays: list[Any], length: int, number: Any) -> Any:
    """Fetch into the cache what a block of ``length`` elements behind block ``number`` reads of ``arrays``.

    Fetching behind the end of an array does nothing.
    """
    first = number * length + -(-AHEAD // length) * length
    fetches = []
    for array in arrays:
        *_, last = (int(extent) for extent in array.shape)
        for element in range(0, length, LINE // np.dtype(str(array.dtype)).itemsize):
            flat = first + element
            indices = [0] * (len(array.shape) - 2) + ([flat // last] if len(array.shape) > 1 else [])
            position = flat % last if len(array.shape) > 1 else flat
            address = tirx.address_of(tirx.BufferLoad(array, [*indices, position]))
            fetches.append(tirx.Evaluate(tirx.call_intrin("void", "tirx.prefetch", address, 0, 3, 1)))
    block = s_tir.SBlock([], [], [], "fetches", tirx.SeqStmt(fetches))
    return s_tir.SBlockRealize([], tirx.const(True, "bool"), block)


def _maximum_of_vector(loop: Any) -> Any:
    """The loop over partial maxima as the maximum of one vector; any other as it is.

    LLVM would take its lanes apart and compare one after the other.
    """
    realize = loop.body
    if not isinstance(realize, s_tir.SBlockRealize):
        return loop
    block = realize.block
    if block.init is None or not str(block.name_hint).endswith("_bits"):
        return loop
    *axes, _ = block.iter_vars
    target, source = block.writes[0].source, block.reads[0].source
    indices = [axis.var for axis in axes]
    lanes = tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), LANES)
    vector = tirx.BufferLoad(source, [*indices, lanes])
    value = tirx.call_llvm_pure_intrin(str(source.dtype), "llvm.vector.reduce.umax", vector)
    store = tirx.BufferStore(target, value, indices)
    whole = s_tir.SBlock(axes, block.reads, block.writes, block.name_hint, store)
    return s_tir.SBlockRealize(list(realize.iter_values)[:-1], realize.predicate, whole)


def _of_one_block(stage: Any, number: Any) -> Any:
    """The stage for block ``number``, counted through all rows."""
    values: list[Any] = []
    for axis in reversed(stage.iter_vars):
        extent = int(axis.dom.extent)
        values.insert(0, number % extent if len(values) < len(stage.iter_vars) - 1 else number)
        number = number // extent
    return s_tir.SBlockRealize(values, tirx.const(True, "bool"), stage)
