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
from fqt_deploy.targets.cuda.product_arguments import arguments_of, panel_columns, words_at_once


class BitplaneWeightGradRule:
    """Takes ``bitplane_weight_grad``."""

    ops: ClassVar[frozenset[str]] = frozenset({"bitplane_weight_grad"})

    def apply(self, function: tirx.PrimFunc, features: CudaFeatures) -> tirx.PrimFunc | None:
        """Counts of every part of the contraction, then twice their sum less that of the tap's validity row."""
        arguments = arguments_of(function)
        if arguments is None:
            return None
        _, _, channels, kernel = arguments
        taps = kernel[0] * kernel[1]
        planes, positions, result = function.params
        words, bits, kept = (int(d) for d in planes.shape)
        form = form_for(features, bits)
        if form is None:
            return None
        rows = taps * (channels + 1)

        def source(channel: Any, plane: Any, word: Any) -> tuple[Any, Any, list[Any]]:
            return tirx.all(channel < kept, word < words), planes, [word, plane, channel]

        left = Operand(kept, bits, words_at_once(kept), True, source)
        right = panel_columns(positions, rows, words)
        parts = parts_of(form, left, right, words)
        partial = scratch((parts, kept, rows), "int32", "partial_counts")
        counts = scratch((kept, rows), "int32", "counts")

        def write(channel: Any, row: Any, count: Any, _: Any, part: Any) -> Any:
            return store(partial, count, part, channel, row)

        product = bit_product(form, left, right, words, write, count_rows=False, parts=parts)
        c, r = Axis(tirx.Var("c", "int32"), kept), Axis(tirx.Var("r", "int32"), rows)
        part = Axis(tirx.Var("part", "int32"), parts)
        total = Value(counts, (c.var, r.var), partial[part.var, c.var, r.var], integer(0), lambda a, b: a + b)
        i, kh, kw = (Axis(tirx.Var(name, "int32"), e) for name, e in zip("iyx", (channels, *kernel), strict=True))
        tap = kh.var * kernel[1] + kw.var
        signs = 2 * counts[c.var, tap * channels + i.var] - counts[c.var, taps * channels + tap]
        axes = (c, i, kh, kw)
        difference = LoopNest("result", axes, (), (Value(result, tuple(axis.var for axis in axes), signs),))
        launches = (
            product,
            generic.reduction(LoopNest("counts", (c, r), (part,), (total,))),
            generic.elementwise([difference]),
        )
        return function.with_body(with_buffers([partial, counts], sequence(*launches)))
