"""Forward products on tensor cores: implicit matrix product of image positions and output channels."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets.cuda import generic
from fqt_deploy.targets.cuda.bit_operand import Operand
from fqt_deploy.targets.cuda.bit_tile import bit_product
from fqt_deploy.targets.cuda.choose_form import form_for
from fqt_deploy.targets.cuda.features import CudaFeatures
from fqt_deploy.targets.cuda.kernel_builder import integer, popcount, scratch, sequence, store, with_buffers
from fqt_deploy.targets.cuda.loop_nest import Axis, LoopNest, Value
from fqt_deploy.targets.cuda.panel_columns import panel_columns, words_at_once
from fqt_deploy.targets.products import BitConvolution, LevelConvolution, product_of


class BinaryConv2dRule:
    """Schedules ``binary_conv2d`` and ``level_conv2d`` on tiles of bits; a position's planes are rows of the tile."""

    ops: ClassVar[frozenset[str]] = frozenset({"binary_conv2d", "level_conv2d"})

    def apply(self, function: tirx.PrimFunc, features: CudaFeatures) -> tirx.PrimFunc | None:
        """Returns launches: a sum of codes is 2 ones(x & w) - ones(x), of bits and weighed planes alike.

        With signs it is twice that, and the largest code times (channels - 2 ones(w)), summed over the taps inside.
        """
        p = product_of(function)
        if not isinstance(p, BitConvolution):
            return None
        bits = p.bits if isinstance(p, LevelConvolution) else 1
        signed = p.signed if isinstance(p, LevelConvolution) else True
        form = form_for(features, bits)
        if form is None:
            return None
        x, w, result = function.params
        places, width = p.output[0] * p.output[1], p.output[1]
        rows = p.samples * places

        def source(row: Any, plane: Any, word: Any) -> tuple[Any, Any, list[Any]]:
            sample, place = row // places, row % places
            tap, at = word // p.words, word % p.words
            inside, y, z = p.input_position((place // width, place % width), p.tap(tap))
            own = [plane] if isinstance(p, LevelConvolution) else []
            return tirx.all(row < rows, word < p.contraction, inside), x, [sample, y, z, *own, at]

        constants = scratch((*p.output, p.columns) if p.is_padded else (1, 1, p.columns), "int32", "constants")
        per_tap = scratch((p.taps, p.columns), "int32", "tap_ones")

        def write(row: Any, column: Any, count: Any, ones: Any, _: Any) -> Any:
            place = row % places
            at = (place // width, place % width, column) if p.is_padded else (0, 0, column)
            value = 2 * count - ones
            if signed:
                value = 2 * value + constants[at]
            return store(result, value.astype(p.dtype), row // places, place // width, place % width, column)

        left, right = Operand(rows, bits, words_at_once(p.words), False, source), panel_columns(w, p.columns)
        product = bit_product(form, left, right, p.contraction, write, count_rows=True)
        if not signed:
            return function.with_body(product)
        launches = sequence(*_constants(w, constants, per_tap, p, (1 << bits) - 1), product)
        return function.with_body(with_buffers([constants, per_tap], launches))


def _constants(w: Any, constants: Any, per_tap: Any, p: BitConvolution, largest_code: int) -> list[Any]:
    """Launches that compute what depends on the output position and channel alone."""

    def add(a: Any, b: Any) -> Any:
        return a + b

    tap, output = Axis(tirx.Var("tap", "int32"), p.taps), Axis(tirx.Var("o", "int32"), p.columns)
    word = Axis(tirx.Var("word", "int32"), p.words)
    ones = popcount(w[output.var // PANEL, tap.var * p.words + word.var, output.var % PANEL])
    count = LoopNest(
        "tap_ones", (tap, output), (word,), (Value(per_tap, (tap.var, output.var), ones, integer(0), add),)
    )
    y, z = (Axis(tirx.Var(name, "int32"), int(d)) for name, d in zip("yz", constants.shape[:2], strict=True))
    kh, kw = Axis(tirx.Var("kh", "int32"), p.kernel[0]), Axis(tirx.Var("kw", "int32"), p.kernel[1])
    inside, _, _ = p.input_position((y.var, z.var), (kh.var, kw.var))
    signs = largest_code * (p.depth - 2 * per_tap[kh.var * p.kernel[1] + kw.var, output.var])
    reached = tirx.if_then_else(inside, signs, 0)
    total = LoopNest(
        "constants",
        (y, z, output),
        (kh, kw),
        (Value(constants, (y.var, z.var, output.var), reached, integer(0), add),),
    )
    return [generic.reduction(count), generic.reduction(total)]
