"""Sampling groups by their scores, with two sorts instead of counting for each group which others precede it.

A linear layer of a transformer has thousands of channels: their pairs are millions, on one thread. The sorts are
stable, and by digits: what is computed are the same integers.
"""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import s_tir, tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.counter_random import element_hash_compute, uint32
from fqt_deploy.ops.lib.float32 import is_nan
from fqt_deploy.ops.selection.select_sampled import SCORE_BITS, SMALLEST_SCORE
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.generic.elementwise import extents

_DIGIT_BITS = 8
_DIGITS = 1 << _DIGIT_BITS
_SCORE_PASSES, _NOISE_PASSES = -(-SCORE_BITS // _DIGIT_BITS), 32 // _DIGIT_BITS
"""Digits of a score and of a random number."""


class SelectSampledRule:
    """Takes every ``select_sampled``."""

    ops: ClassVar[frozenset[str]] = frozenset({"select_sampled"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """Returns the kernel, which is serial."""
        del features
        score, _, index, *_ = function.params
        schedule = s_tir.Schedule(function)
        parts = extents(schedule, schedule.get_sblock("select_sampled_largest"))[0]
        return _kernel(parts, int(score.shape[0]) // parts, int(index.shape[0]) // parts)


def _larger(largest: Any, score: Any) -> Any:
    """The larger of both; what is not a number stays."""
    return tirx.Select(tirx.any(score > largest, is_nan(score)), score, largest)


def _integer(score: Any, largest: Any) -> Any:
    """A score as an integer in [1, 2^SCORE_BITS]."""
    scaled = (score * (tirx.const(2.0**SCORE_BITS, "float32") / largest)).astype("int32")
    return tirx.Select(largest > tirx.const(SMALLEST_SCORE, "float32"), tirx.max(scaled, 1), 1)


def _descending(integer: Any) -> Any:
    """A sort key that is small where the integer score is large."""
    return (tirx.const(1 << SCORE_BITS, "int32") - integer).astype("uint32")


def _noise(number: Any, key: Any) -> Any:
    """The random number of a group."""
    return element_hash_compute(number.astype("uint32"), key)


def _digit(key: Any, position: Any) -> Any:
    """One digit of a sort key."""
    return ((key >> (position * _DIGIT_BITS).astype("uint32")) & uint32(_DIGITS - 1)).astype("int32")


def _points_before(draws: Any, below: Any, offset: Any, divisor: Any) -> Any:
    """How many sampling points lie before the end of a stretch."""
    return tirx.truncdiv(draws.astype("int64") * below + offset, divisor)


def _inverse_probability(mass: Any, draws: Any, integer: Any) -> Any:
    """One over the probability that a group is kept that is not kept for certain."""
    hits = tirx.max(draws.astype("int64") * integer.astype("int64"), tirx.const(1, "int64"))
    return mass.astype("float32") / hits.astype("float32")


@script.macro
def _sort(order: Any, keys: Any, groups: int, passes: int) -> None:
    """Fill ``order`` with the numbers of the groups by ascending keys; equal ones by their numbers."""
    counts = T.alloc_buffer((_DIGITS,), "int32")
    spare = T.alloc_buffer((groups,), "int32")
    for i in T.serial(groups):
        order[i] = i
    for position in T.unroll(passes):
        for d in T.serial(_DIGITS):
            counts[d] = 0
        for i in T.serial(groups):
            counts[_digit(keys[i], position)] = counts[_digit(keys[i], position)] + 1
        for d in T.serial(_DIGITS - 1):  # where each digit ends
            counts[d + 1] = counts[d + 1] + counts[d]
        for i in T.serial(groups):
            last: T.let = groups - 1 - i
            counts[_digit(keys[order[last]], position)] = counts[_digit(keys[order[last]], position)] - 1
            spare[counts[_digit(keys[order[last]], position)]] = order[last]
        for i in T.serial(groups):
            order[i] = spare[i]


@script.macro
def _choose_certain(groups: int, keep: int, integers: Any, order: Any, certain: Any, draws: Any, mass: Any) -> None:
    """Mark the groups whose share exceeds one, of those that are left with each; count and sum up the others."""
    tail = T.alloc_buffer((1,), "int64")
    tail[0] = T.int64(0)
    draws[0] = keep
    mass[0] = T.int64(0)
    for r in T.serial(groups):
        rank: T.let = groups - 1 - r
        group: T.let = order[rank]
        tail[0] = tail[0] + integers[group].astype("int64")
        if (keep - rank).astype("int64") * integers[group].astype("int64") >= tail[0]:
            certain[group] = 1
            draws[0] = draws[0] - 1
        else:
            certain[group] = 0
            mass[0] = mass[0] + integers[group].astype("int64")


def _kernel(parts: int, groups: int, keep: int) -> tirx.PrimFunc:
    """The TIR function for so many parts of so many groups, of each of which ``keep`` are kept."""

    @script.prim_func(s_tir=True)
    def select_sampled(
        score: T.Buffer((parts * groups,), "float32"),
        key: T.Buffer((2,), "int32"),
        index: T.Buffer((parts * keep,), "int32"),
        slot: T.Buffer((parts * groups,), "int32"),
        weight: T.Buffer((parts * keep,), "float32"),
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        largest = T.alloc_buffer((1,), "float32")
        integers = T.alloc_buffer((groups,), "int32")
        keys = T.alloc_buffer((groups,), "uint32")
        order = T.alloc_buffer((groups,), "int32")
        certain = T.alloc_buffer((groups,), "int32")
        draws = T.alloc_buffer((1,), "int32")
        mass = T.alloc_buffer((1,), "int64")
        start = T.alloc_buffer((1,), "int64")
        chosen = T.alloc_buffer((groups,), "int32")
        count = T.alloc_buffer((1,), "int32")
        for part in T.serial(parts):
            first: T.let = part * groups
            noises: T.let = part * (groups + 1)
            largest[0] = T.float32("-inf")
            for i in T.serial(groups):
                largest[0] = _larger(largest[0], score[first + i])
            for i in T.serial(groups):
                integers[i] = _integer(score[first + i], largest[0])
                keys[i] = _descending(integers[i])
            _sort(order, keys, groups, _SCORE_PASSES)
            _choose_certain(groups, keep, integers, order, certain, draws, mass)
            for i in T.serial(groups):
                keys[i] = _noise(noises + i, key)
            _sort(order, keys, groups, _NOISE_PASSES)
            start[0] = T.int64(0)
            for r in T.serial(groups):
                group: T.let = order[r]
                end: T.let = start[0] + integers[group].astype("int64")
                divisor: T.let = T.max(mass[0], T.int64(1))
                offset: T.let = (_noise(noises + groups, key).astype("int64") * mass[0]) >> T.int64(32)
                if certain[group] > 0:
                    chosen[group] = 1
                else:
                    chosen[group] = T.Select(
                        _points_before(draws[0], end, offset, divisor)
                        > _points_before(draws[0], start[0], offset, divisor),
                        1,
                        0,
                    )
                    start[0] = end
            count[0] = 0
            for i in T.serial(groups):
                if chosen[i] > 0 and count[0] < keep:
                    index[part * keep + count[0]] = first + i
                    slot[first + i] = part * keep + count[0]
                    weight[part * keep + count[0]] = T.Select(
                        certain[i] > 0, T.float32(1), _inverse_probability(mass[0], draws[0], integers[i])
                    )
                    count[0] = count[0] + 1
                else:
                    slot[first + i] = -1

    return select_sampled
