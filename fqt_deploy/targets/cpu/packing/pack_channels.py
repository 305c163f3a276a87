"""Bits packed along channels: 32 values become bytes of one register, and one instruction collects a bit of each.

``vpmovmskb`` takes the top bit of every byte. LLVM turns a comparison that feeds it into a mask register and moves
that, so packing signs costs a comparison for sixteen values and little else.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir.expr import TensorLoad

from fqt_deploy.ops.lib.dtypes import dtype_of
from fqt_deploy.ops.lib.packed_words import IN_PLANES, RUN, WORD
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.generic.elementwise import PARALLEL_ELEMENTS, extents

MOVE_MASK = "llvm.x86.avx2.pmovmskb"
PLANE_AXIS = -2
"""Axis of the bit-planes in packed codes, [..., B, words]."""


class PackChannelsRule:
    """Takes ``pack_signs`` and packings of codes, of words filled up, where ``vpmovmskb`` is to be had."""

    ops: ClassVar[frozenset[str]] = IN_PLANES | {"pack_signs"}

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """Compute 32 bytes, whatever was inlined into them, then collect their bits."""
        schedule = s_tir.Schedule(function)
        blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
        if not has_move_mask(features) or len(blocks) != 2:
            return None
        values, packing = blocks
        if extents(schedule, values)[-1] % WORD:
            return None
        *outer, k = schedule.get_loops(packing)
        has_planes = str(function.attrs["fqt.op"]) in IN_PLANES
        if has_planes:
            plane = outer.pop(PLANE_AXIS)
            schedule.reorder(*outer, plane, k)
            schedule.unroll(plane)
        run = int(schedule.get(values).annotations.get(RUN, WORD))
        schedule.compute_at(values, outer[-1])
        loop = schedule.get_loops(values)[-1]
        schedule.vectorize(loop if run == WORD else schedule.split(loop, [None, run])[-1])
        if math.prod(extents(schedule, packing)) >= PARALLEL_ELEMENTS:
            schedule.parallel(schedule.fuse(*outer) if len(outer) > 1 else outer[0])
        return collect_bits(schedule.mod["main"], str(schedule.get(packing).name_hint), has_planes=has_planes)


def has_move_mask(features: CpuFeatures) -> bool:
    """Whether the processor has ``vpmovmskb`` of 32 bytes."""
    return features.is_x86 and features.vector_bits >= 256


def collect_bits(function: tirx.PrimFunc, block: str, *, has_planes: bool) -> tirx.PrimFunc:
    """The function with the reduction of ``block`` over the 32 bytes of a word replaced by one instruction.

    Before::

        for k in range(32): word[i] += int32(byte[j + k]) << k             # or a bit, (byte >> plane) & 1

    After::

        word[i] = pmovmskb(byte[j : j + 32] << 7)                          # or byte << (7 - plane)
    """

    def rewrite(loop: Any) -> Any:
        realize = loop.body
        if not isinstance(realize, s_tir.SBlockRealize) or realize.block.name_hint != block:
            return loop
        if int(realize.block.iter_vars[-1].iter_type) != tirx.IterVar.CommReduce:
            return loop  # an outer loop of what has been replaced
        return _collected(realize, has_planes=has_planes)

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, rewrite)))


def _collected(realize: Any, *, has_planes: bool) -> Any:
    """The block of one word, without its reduction axis."""
    reduction = realize.block
    *axes, k = reduction.iter_vars
    loads: list[Any] = []

    def visit(load: Any) -> None:
        if dtype_of(load) == "uint8":
            loads.append(load)

    tvm_ffi.structural_walk(reduction.body.value, (TensorLoad, visit))
    *leading, last = loads[0].indices
    start = tvm_ffi.structural_map(last, (tirx.Var, lambda v: tirx.const(0, "int32") if v.same_as(k.var) else v))
    values = tirx.BufferLoad(loads[0].source, [*leading, tirx.Ramp(start, 1, WORD)])
    top: Any = tirx.const(7, "int32") - axes[PLANE_AXIS].var if has_planes else tirx.const(7, "int32")
    shifted = tirx.reinterpret("int8x32", values) << tirx.Broadcast(top.astype("int8"), WORD)
    mask = tirx.call_llvm_pure_intrin("int32", MOVE_MASK, shifted)
    word = tirx.BufferStore(reduction.body.buffer, mask, reduction.body.indices)
    block = s_tir.SBlock(axes, reduction.reads, reduction.writes, reduction.name_hint, word)
    return s_tir.SBlockRealize(list(realize.iter_values)[:-1], realize.predicate, block)
