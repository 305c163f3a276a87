"""``fqt::select_sampled``: exactly K groups, each with probability proportional to its score; unbiased pruning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.counter_random import element_hash, element_hash_compute
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_bits import element_hash as element_hash_onnx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.lib.selection import ranked, selected, selected_compute, selected_onnx, selected_shapes
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples

SCORE_BITS = 18
"""Number of bits of scores, which become integers in [1, 2^18]: sums of them are exact, in any order."""
SMALLEST_SCORE = 2.0**-96
"""Bound of the largest score below which all scores count as equal: the factor would leave float32."""


@define(kind=Kind.PRODUCT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class SelectSampled(FqtOp):
    """Madow's systematic sampling in random order, on integers (algorithm, section 4).

    Groups whose share would exceed probability 1 are kept for certain; the others are laid out in random order, and K'
    equally spaced points with one random offset hit each at most once.

    Attributes:
        score: [parts * G] float32, at least 0; all of a part below ``SMALLEST_SCORE`` means all equal.
        key: [2] int32 random stream.
        keep: K, of each part.
        parts: how many parts of the groups that follow each other are drawn from by themselves.

    Returns:
        index: [parts * K] int32, ascending. slot: [parts * G] int32, position in ``index`` or -1. weight: [parts * K]
        float32, one over the inclusion probability.
    """

    score: Operand
    key: Operand
    keep: int
    parts: int = 1

    def reference(self) -> tuple[Tensor, Tensor, Tensor]:
        """The result in plain PyTorch."""
        if self.score.shape[0] % self.parts:
            raise ValueError(f"{self.score.shape[0]} groups are no {self.parts} equal parts")
        groups = self.score.shape[0] // self.parts
        noise = element_hash(torch.arange(self.parts * (groups + 1)), self.key).view(self.parts, groups + 1)
        drawn = [self._drawn(*part) for part in zip(self.score.view(self.parts, groups), noise, strict=True)]
        kept, weight = (torch.cat(each) for each in zip(*drawn, strict=True))
        return selected(kept, weight)

    def _drawn(self, score: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Which groups of a part are kept, and one over the probabilities of all."""
        groups = score.shape[0]
        largest = score.max()
        if largest > SMALLEST_SCORE:
            w = (score * (2.0**SCORE_BITS / largest)).to(torch.int32).long().clamp(min=1)
        else:
            w = torch.ones(groups, dtype=torch.int64)
        order = torch.sort(w, descending=True, stable=True).indices
        ordered = w[order]
        tail = ordered.flip(0).cumsum(0).flip(0)
        certain = torch.zeros(groups, dtype=torch.bool)
        certain[order] = (self.keep - torch.arange(groups)) * ordered >= tail
        draws = self.keep - int(certain.sum())
        total = w[~certain].sum()
        uncertain = torch.where(certain, 0, w)
        shuffled = torch.sort(noise[:groups], stable=True).indices
        start = torch.zeros(groups, dtype=torch.int64)
        start[shuffled] = uncertain[shuffled].cumsum(0) - uncertain[shuffled]
        divisor = total.clamp(min=1)
        offset = (noise[groups] * total) >> 32
        hits = (draws * (start + w) + offset) // divisor - (draws * start + offset) // divisor
        probability = (draws * w).clamp(min=1).float()
        return certain | (~certain & (hits > 0)), torch.where(certain, 1.0, total.float() / probability)

    def fake(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shape rule: [parts * G] -> [parts * K], [parts * G], [parts * K]."""
        return selected_shapes(self.score, self.keep, self.parts)

    def compute(self) -> tuple[te.Tensor, ...]:
        """The loop nest: ranks, tails and starts by counting in each part; every sum is an exact integer."""
        parts, name = self.parts, "select_sampled"
        groups = int(self.score.shape[0]) // parts

        def axis() -> Any:
            return te.reduce_axis((0, groups), "j")

        def total(expression: Any, stage: str) -> te.Tensor:
            j = axis()
            return te.compute((parts,), lambda p: te.sum(expression(p, j), axis=j), name=f"{name}_{stage}")

        j = axis()
        largest = te.compute((parts,), lambda p: te.max(self.score[p * groups + j], axis=j), name=f"{name}_largest")

        def integer(p: Any, i: Any) -> Any:
            top = largest[p]
            scaled = (self.score[p * groups + i] * (tirx.const(2.0**SCORE_BITS, "float32") / top)).astype("int32")
            return tirx.Select(top > tirx.const(SMALLEST_SCORE, "float32"), tirx.max(scaled, 1), 1)

        w = te.compute((parts, groups), integer, name=f"{name}_score")
        rank = ranked(
            lambda p, j, i: tirx.any(w[p, j] > w[p, i], tirx.all(w[p, j].equal(w[p, i]), j < i)),
            parts,
            groups,
            f"{name}_rank",
        )
        t = axis()
        tail = te.compute(
            (parts, groups),
            lambda p, i: te.sum(tirx.Select(rank[p, t] >= rank[p, i], w[p, t], 0).astype("int64"), axis=t),
            name=f"{name}_tail",
        )
        certain = te.compute(
            (parts, groups),
            lambda p, i: tirx.Select(
                (self.keep - rank[p, i]).astype("int64") * w[p, i].astype("int64") >= tail[p, i], 1, 0
            ),
            name=f"{name}_certain",
        )
        count = total(lambda p, j: certain[p, j], "count")
        mass = total(lambda p, j: tirx.Select(certain[p, j] > 0, 0, w[p, j]).astype("int64"), "mass")
        noise = te.compute(
            (parts, groups + 1),
            lambda p, i: element_hash_compute((p * (groups + 1) + i).astype("uint32"), self.key),
            name=f"{name}_noise",
        )
        s = axis()

        def precedes(p: Any, i: Any) -> Any:
            return tirx.any(noise[p, s] < noise[p, i], tirx.all(noise[p, s].equal(noise[p, i]), s < i))

        start = te.compute(
            (parts, groups),
            lambda p, i: te.sum(
                tirx.Select(tirx.all(precedes(p, i), certain[p, s].equal(0)), w[p, s], 0).astype("int64"), axis=s
            ),
            name=f"{name}_start",
        )

        def kept(p: Any, i: Any) -> Any:
            draws = (self.keep - count[p]).astype("int64")
            divisor = tirx.max(mass[p], tirx.const(1, "int64"))
            offset = (noise[p, groups].astype("int64") * mass[p]) >> tirx.const(32, "int64")
            upper = tirx.truncdiv(draws * (start[p, i] + w[p, i].astype("int64")) + offset, divisor)
            lower = tirx.truncdiv(draws * start[p, i] + offset, divisor)
            return tirx.Select(tirx.any(certain[p, i] > 0, upper > lower), 1, 0)

        def weight(p: Any, i: Any) -> Any:
            draws = (self.keep - count[p]).astype("int64")
            probability = tirx.max(draws * w[p, i].astype("int64"), tirx.const(1, "int64")).astype("float32")
            return tirx.Select(certain[p, i] > 0, tirx.const(1.0, "float32"), mass[p].astype("float32") / probability)

        chosen = te.compute((parts, groups), kept, name=f"{name}_kept")
        weights = te.compute((parts, groups), weight, name=f"{name}_weights")
        return selected_compute(chosen, lambda p, i: weights[p, i], self.keep, name)

    def cost(self) -> Cost:
        """The cost: quadratic in the number of groups of a part."""
        return Cost(flops=4 * self.score.numel() ** 2 // self.parts, bytes_moved=8 * self.score.numel())

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: smooth, spiky, zero and denormal scores, all kept, one group, fewer groups than bits, parts."""
        g = torch.Generator().manual_seed(0)
        key = torch.tensor([77, -5], dtype=torch.int32)
        yield torch.rand(64, generator=g), key, 16
        yield torch.rand(100, generator=g) ** 20, key, 25
        yield torch.tensor([0.0, 100.0, 0.0, 50.0, 1e-3]), key, 2
        yield torch.zeros(10), key, 3
        yield torch.arange(9) * 1e-45, key, 3
        yield torch.rand(3, generator=g), key, 3
        yield torch.rand(1, generator=g), key, 1
        yield torch.rand(60, generator=g), key, 4, 5
        yield torch.cat([torch.zeros(7), torch.tensor([1.0, 0, 0, 9, 0, 0, 0])]), key, 3, 2

    def onnx_body(self, op: Body) -> tuple[str, str, str]:
        """The ONNX body: the steps of the reference, for all parts at once; ``TopK`` sorts, stably."""
        zero, one = op.constant(0, "int64"), op.constant(1, "int64")
        keep, parts, last = op.integer("keep"), op.reshape(op.integer("parts"), 1), op.constant([1], "int64")
        count = op("Div", op.extent(self.score, 0), parts)  # groups of a part
        score = op("Reshape", self.score, op("Concat", parts, count, axis=0))
        largest = op("ReduceMax", score, last, keepdims=1)
        some = op("Greater", largest, op.constant(SMALLEST_SCORE, "float32"))
        factor = op(
            "Div", op.constant(2.0**SCORE_BITS, "float32"), op("Where", some, largest, op.constant(1.0, "float32"))
        )
        scaled = op.cast(op.cast(op("Mul", score, factor), "int32"), "int64")
        w = op("Max", op("Where", some, scaled, one), one)
        ordered, order = op.several("TopK", w, count, outputs=2, axis=1, largest=1, sorted=1)
        tail = op("CumSum", ordered, op.constant(1, "int32"), reverse=1)
        share = op("Mul", op("Sub", keep, op.range(count)), ordered)
        sure = op.cast(op("GreaterOrEqual", share, tail), "int64")
        zeros = op("Expand", zero, op("Shape", w))
        certain = op("ScatterElements", zeros, order, sure, axis=1)
        draws = op("Sub", keep, op("ReduceSum", certain, last, keepdims=1))
        uncertain = op("Mul", w, op("Sub", one, certain))
        total = op("ReduceSum", uncertain, last, keepdims=1)
        numbered = op("Add", count, last)
        hashed = element_hash_onnx(op, op.cast(op.range(op("Mul", parts, numbered)), "uint32"), self.key)
        noise = op("Reshape", op.cast(hashed, "int64"), op("Concat", parts, numbered, axis=0))
        own = op("Slice", noise, op.constant([0], "int64"), count, last)
        _, shuffled = op.several("TopK", own, count, outputs=2, axis=1, largest=0, sorted=1)
        running = op("CumSum", op("GatherElements", uncertain, shuffled, axis=1), op.constant(1, "int32"), exclusive=1)
        start = op("ScatterElements", zeros, shuffled, running, axis=1)
        divisor = op("Max", total, one)
        offset = op("Div", op("Mul", op("Slice", noise, count, numbered, last), total), op.constant(2**32, "int64"))

        def points(below: str) -> str:  # sampling points before the end of a stretch
            return op("Div", op("Add", op("Mul", draws, below), offset), divisor)

        hits = op("Sub", points(op("Add", start, w)), points(start))
        kept = op("Or", op.cast(certain, "bool"), op("Greater", hits, zero))
        probability = op.cast(op("Max", op("Mul", draws, w), one), "float32")
        inverse = op("Div", op.cast(total, "float32"), probability)
        weight = op("Where", op.cast(certain, "bool"), op.constant(1.0, "float32"), inverse)
        flat = op.constant([-1], "int64")
        chosen = op("Reshape", op.cast(kept, "int64"), flat)
        everything = op("Mul", parts, op.reshape(keep, 1))
        _, picked = op.several("TopK", chosen, everything, outputs=2, axis=0, largest=1, sorted=1)
        index, slot = selected_onnx(op, picked, op.extent(self.score, 0))
        return index, slot, op("Gather", op("Reshape", weight, flat), index, axis=0)
