"""Weight-gradient product on tensor cores: channels and their planes times taps and input channels, over positions."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx

from fqt_deploy.targets.cuda import generic
from fqt_deploy.targets.cuda.bit_operand import Operand
from fqt_deploy.targets.cuda.bit_tile import bit_product, parts_of
from fqt_deploy.targets.cuda.choose_form import form_for
from fqt_deploy.targets.cuda.features import CudaFeatures
from fqt_deploy.targets.cuda.kernel_builder import integer, scratch, sequence, store, with_buffers
from fqt_deploy.targets.cuda.loop_nest import Axis, LoopNest, Value
from fqt_deploy.targets.cuda.panel_columns import panel_columns, words_at_once
from fqt_deploy.targets.products import BitWeightGradient, product_of


class BitplaneWeightGradRule:
    """Schedules ``bitplane_weight_grad`` and ``level_weight_grad`` on tiles of bits."""

    ops: ClassVar[frozenset[str]] = frozenset({"bitplane_weight_grad", "level_weight_grad"})

    def apply(self, function: tirx.PrimFunc, features: CudaFeatures) -> tirx.PrimFunc | None:
        """Counts of every part of the contraction; then planes are weighed and added, and made sums of levels."""
        p = product_of(function)
        if not isinstance(p, BitWeightGradient):
            return None
        form = form_for(features, p.bits)
        if form is None:
            return None
        planes, positions, result = function.params

        def source(channel: Any, plane: Any, word: Any) -> tuple[Any, Any, list[Any]]:
            return tirx.all(channel < p.kept, word < p.words), planes, [word, plane, channel]

        left, right = Operand(p.kept, p.bits, words_at_once(p.kept), True, source), panel_columns(positions, p.rows)
        parts = parts_of(form, left, right, p.words)
        partial = scratch((parts, p.kept, p.rows), "int32", "partial_counts")
        counts = scratch((p.kept, p.rows), "int32", "counts")

        def write(channel: Any, row: Any, count: Any, _: Any, part: Any) -> Any:
            return store(partial, count, part, channel, row)

        product = bit_product(form, left, right, p.words, write, count_rows=False, parts=parts)
        c, r = Axis(tirx.Var("c", "int32"), p.kept), Axis(tirx.Var("r", "int32"), p.rows)
        part = Axis(tirx.Var("part", "int32"), parts)
        total = Value(counts, (c.var, r.var), partial[part.var, c.var, r.var], integer(0), lambda a, b: a + b)
        i, kh, kw = (Axis(tirx.Var(name, "int32"), e) for name, e in zip("iyx", (p.results, *p.kernel), strict=True))
        tap = kh.var * p.kernel[1] + kw.var
        codes: Any = counts[c.var, tap * p.channels + i.var]
        for plane in range(1, p.planes):
            codes = codes + (counts[c.var, tap * p.channels + plane * p.plane_channels + i.var] << plane)
        sums = p.level(codes, counts[c.var, p.taps * p.channels + tap])
        axes = (c, i, kh, kw)
        difference = LoopNest("result", axes, (), (Value(result, tuple(axis.var for axis in axes), sums),))
        launches = (
            product,
            generic.reduction(LoopNest("counts", (c, r), (part,), (total,))),
            generic.elementwise([difference]),
        )
        return function.with_body(with_buffers([partial, counts], sequence(*launches)))
