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
        score: [G] float32, at least 0; all below ``SMALLEST_SCORE`` means all equal.
        key: [2] int32 random stream.
        keep: K.

    Returns:
        index: [K] int32, ascending. slot: [G] int32, position in ``index`` or -1. weight: [K] float32, one over the
        inclusion probability.
    """

    score: Operand
    key: Operand
    keep: int

    def reference(self) -> tuple[Tensor, Tensor, Tensor]:
        """The result in plain PyTorch."""
        groups = self.score.shape[0]
        largest = self.score.max()
        if largest > SMALLEST_SCORE:
            w = (self.score * (2.0**SCORE_BITS / largest)).to(torch.int32).long().clamp(min=1)
        else:
            w = torch.ones(groups, dtype=torch.int64)
        order = torch.sort(w, descending=True, stable=True).indices
        ordered = w[order]
        tail = ordered.flip(0).cumsum(0).flip(0)
        certain = torch.zeros(groups, dtype=torch.bool)
        certain[order] = (self.keep - torch.arange(groups)) * ordered >= tail
        draws = self.keep - int(certain.sum())
        total = w[~certain].sum()
        noise = element_hash(torch.arange(groups + 1), self.key)
        uncertain = torch.where(certain, 0, w)
        shuffled = torch.sort(noise[:groups], stable=True).indices
        start = torch.zeros(groups, dtype=torch.int64)
        start[shuffled] = uncertain[shuffled].cumsum(0) - uncertain[shuffled]
        divisor = total.clamp(min=1)
        offset = (noise[groups] * total) >> 32
        hits = (draws * (start + w) + offset) // divisor - (draws * start + offset) // divisor
        probability = (draws * w).clamp(min=1).float()
        weight = torch.where(certain, 1.0, total.float() / probability)
        return selected(certain | (~certain & (hits > 0)), weight)

    def fake(self) -> tuple[Tensor, Tensor, Tensor]:
        """Shape rule: [G] -> [K], [G], [K]."""
        return selected_shapes(self.score, self.keep)

    def compute(self) -> tuple[te.Tensor, ...]:
        """The loop nest: ranks, tails and starts by counting; every sum is an exact integer."""
        groups = int(self.score.shape[0])
        name = "select_sampled"

        def axis() -> Any:
            return te.reduce_axis((0, groups), "j")

        def total(expression: Any, stage: str) -> te.Tensor:
            j = axis()
            return te.compute((1,), lambda _: te.sum(expression(j), axis=j), name=f"{name}_{stage}")

        j = axis()
        largest = te.compute((1,), lambda _: te.max(self.score[j], axis=j), name=f"{name}_largest")

        def integer(i: Any) -> Any:
            top = largest[0]
            scaled = (self.score[i] * (tirx.const(2.0**SCORE_BITS, "float32") / top)).astype("int32")
            return tirx.Select(top > tirx.const(SMALLEST_SCORE, "float32"), tirx.max(scaled, 1), 1)

        w = te.compute((groups,), integer, name=f"{name}_score")
        rank = ranked(lambda j, i: tirx.any(w[j] > w[i], tirx.all(w[j].equal(w[i]), j < i)), groups, f"{name}_rank")
        t = axis()
        tail = te.compute(
            (groups,),
            lambda i: te.sum(tirx.Select(rank[t] >= rank[i], w[t], 0).astype("int64"), axis=t),
            name=f"{name}_tail",
        )
        certain = te.compute(
            (groups,),
            lambda i: tirx.Select((self.keep - rank[i]).astype("int64") * w[i].astype("int64") >= tail[i], 1, 0),
            name=f"{name}_certain",
        )
        count = total(lambda j: certain[j], "count")
        mass = total(lambda j: tirx.Select(certain[j] > 0, 0, w[j]).astype("int64"), "mass")
        noise = te.compute(
            (groups + 1,), lambda i: element_hash_compute(i.astype("uint32"), self.key), name=f"{name}_noise"
        )
        s = axis()

        def precedes(i: Any) -> Any:
            return tirx.any(noise[s] < noise[i], tirx.all(noise[s].equal(noise[i]), s < i))

        start = te.compute(
            (groups,),
            lambda i: te.sum(tirx.Select(tirx.all(precedes(i), certain[s].equal(0)), w[s], 0).astype("int64"), axis=s),
            name=f"{name}_start",
        )

        def kept(i: Any) -> Any:
            draws = (self.keep - count[0]).astype("int64")
            divisor = tirx.max(mass[0], tirx.const(1, "int64"))
            offset = (noise[groups].astype("int64") * mass[0]) >> tirx.const(32, "int64")
            upper = tirx.truncdiv(draws * (start[i] + w[i].astype("int64")) + offset, divisor)
            lower = tirx.truncdiv(draws * start[i] + offset, divisor)
            return tirx.Select(tirx.any(certain[i] > 0, upper > lower), 1, 0)

        def weight(i: Any) -> Any:
            draws = (self.keep - count[0]).astype("int64")
            probability = tirx.max(draws * w[i].astype("int64"), tirx.const(1, "int64")).astype("float32")
            return tirx.Select(certain[i] > 0, tirx.const(1.0, "float32"), mass[0].astype("float32") / probability)

        chosen = te.compute((groups,), kept, name=f"{name}_kept")
        weights = te.compute((groups,), weight, name=f"{name}_weights")
        return selected_compute(chosen, lambda i: weights[i], self.keep, name)

    def cost(self) -> Cost:
        """The cost: quadratic in the number of groups."""
        return Cost(flops=4 * self.score.numel() ** 2, bytes_moved=8 * self.score.numel())

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: smooth, spiky, zero and denormal scores, all kept, one group, fewer groups than bits."""
        g = torch.Generator().manual_seed(0)
        key = torch.tensor([77, -5], dtype=torch.int32)
        yield torch.rand(64, generator=g), key, 16
        yield torch.rand(100, generator=g) ** 20, key, 25
        yield torch.tensor([0.0, 100.0, 0.0, 50.0, 1e-3]), key, 2
        yield torch.zeros(10), key, 3
        yield torch.arange(9) * 1e-45, key, 3
        yield torch.rand(3, generator=g), key, 3
        yield torch.rand(1, generator=g), key, 1

    def onnx_body(self, op: Body) -> tuple[str, str, str]:
        """The ONNX body: the steps of the reference; ``TopK`` sorts, stably."""
        zero, one = op.constant(0, "int64"), op.constant(1, "int64")
        count, keep, first = op.extent(self.score, 0), op.integer("keep"), op.constant([0], "int64")
        largest = op("ReduceMax", self.score, first, keepdims=0)
        some = op("Greater", largest, op.constant(SMALLEST_SCORE, "float32"))
        factor = op(
            "Div", op.constant(2.0**SCORE_BITS, "float32"), op("Where", some, largest, op.constant(1.0, "float32"))
        )
        scaled = op.cast(op.cast(op("Mul", self.score, factor), "int32"), "int64")
        w = op("Max", op("Where", some, scaled, one), one)
        ordered, order = op.several("TopK", w, count, outputs=2, axis=0, largest=1, sorted=1)
        tail = op("CumSum", ordered, op.constant(0, "int32"), reverse=1)
        share = op("Mul", op("Sub", keep, op.range(count)), ordered)
        sure = op.cast(op("GreaterOrEqual", share, tail), "int64")
        zeros = op("Expand", zero, count)
        certain = op("ScatterElements", zeros, order, sure, axis=0)
        draws = op("Sub", keep, op.sum(certain, 0))
        uncertain = op("Mul", w, op("Sub", one, certain))
        total = op.sum(uncertain, 0)
        noise = op.cast(
            element_hash_onnx(op, op.cast(op.range(op("Add", count, op.constant([1], "int64"))), "uint32"), self.key),
            "int64",
        )
        own = op.front(noise, count, 0)
        _, shuffled = op.several("TopK", own, count, outputs=2, axis=0, largest=0, sorted=1)
        running = op("CumSum", op("Gather", uncertain, shuffled, axis=0), op.constant(0, "int32"), exclusive=1)
        start = op("ScatterElements", zeros, shuffled, running, axis=0)
        divisor = op("Max", total, one)
        last = op("Squeeze", op.back(noise, count, 0), first)
        offset = op("Div", op("Mul", last, total), op.constant(2**32, "int64"))

        def points(below: str) -> str:  # sampling points before the end of a stretch
            return op("Div", op("Add", op("Mul", draws, below), offset), divisor)

        hits = op("Sub", points(op("Add", start, w)), points(start))
        kept = op("Or", op.cast(certain, "bool"), op("Greater", hits, zero))
        chosen = op.cast(kept, "int64")
        _, picked = op.several("TopK", chosen, op.reshape(keep, 1), outputs=2, axis=0, largest=1, sorted=1)
        index, slot = selected_onnx(op, picked, count)
        probability = op.cast(op("Max", op("Mul", draws, w), one), "float32")
        inverse = op("Div", op.cast(total, "float32"), probability)
        weight = op("Where", op.cast(certain, "bool"), op.constant(1.0, "float32"), inverse)
        return index, slot, op("Gather", weight, index, axis=0)
