"""Forward product on tensor cores: implicit matrix product of image positions and output channels."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx

from fqt_deploy.ops.lib.convolution_shape import input_position
from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets.cuda import generic
from fqt_deploy.targets.cuda.bit_operand import Operand
from fqt_deploy.targets.cuda.bit_tile import bit_product
from fqt_deploy.targets.cuda.choose_form import form_for
from fqt_deploy.targets.cuda.features import CudaFeatures
from fqt_deploy.targets.cuda.kernel_builder import integer, popcount, scratch, sequence, store, with_buffers
from fqt_deploy.targets.cuda.loop_nest import Axis, LoopNest, Value
from fqt_deploy.targets.cuda.product_arguments import arguments_of, panel_columns, words_at_once


class BinaryConv2dRule:
    """Takes ``binary_conv2d``."""

    ops: ClassVar[frozenset[str]] = frozenset({"binary_conv2d"})

    def apply(self, function: tirx.PrimFunc, features: CudaFeatures) -> tirx.PrimFunc | None:
        """With bits x, w of signs: sum = 4 ones(x & w) - 2 ones(x) + sum over taps inside of (channels - 2 ones(w))."""
        arguments = arguments_of(function)
        form = form_for(features, 1)
        if form is None or arguments is None:
            return None
        _, _, channels, outputs, kernel, stride, padding = arguments
        x, w, result = function.params
        n, h, width, words = (int(d) for d in x.shape)
        _, oh, ow, _ = (int(d) for d in result.shape)
        taps, total_words = kernel[0] * kernel[1], kernel[0] * kernel[1] * words

        def source(row: Any, _: Any, word: Any) -> tuple[Any, Any, list[Any]]:
            sample, place = row // (oh * ow), row % (oh * ow)
            tap, at = word // words, word % words
            inside, y, z = input_position(
                place // ow, place % ow, tap // kernel[1], tap % kernel[1], [h, width], stride, padding
            )
            return tirx.all(row < n * oh * ow, word < total_words, inside), x, [sample, y, z, at]

        constants = scratch((oh, ow, outputs) if any(padding) else (1, 1, outputs), "int32", "constants")
        per_tap = scratch((taps, outputs), "int32", "tap_ones")

        def write(row: Any, column: Any, count: Any, ones: Any, _: Any) -> Any:
            place = row % (oh * ow)
            at = (place // ow, place % ow, column) if any(padding) else (0, 0, column)
            value = 4 * count - 2 * ones + constants[at]
            return store(result, value.astype(str(result.dtype)), row // (oh * ow), place // ow, place % ow, column)

        left = Operand(n * oh * ow, 1, words_at_once(words), False, source)
        right = panel_columns(w, outputs, total_words)
        product = bit_product(form, left, right, total_words, write, count_rows=True)
        helpers = _constants(w, constants, per_tap, words, channels, [h, width], kernel, stride, padding)
        return function.with_body(with_buffers([constants, per_tap], sequence(*helpers, product)))


def _constants(
    w: Any,
    constants: Any,
    per_tap: Any,
    words: int,
    channels: int,
    hw: list[int],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
) -> list[Any]:
    """Launches that compute what depends on the output position and channel alone."""

    def add(a: Any, b: Any) -> Any:
        return a + b

    tap, output = (
        Axis(tirx.Var("tap", "int32"), int(per_tap.shape[0])),
        Axis(tirx.Var("o", "int32"), int(per_tap.shape[1])),
    )
    word = Axis(tirx.Var("word", "int32"), words)
    ones = popcount(w[output.var // PANEL, tap.var * words + word.var, output.var % PANEL])
    count = LoopNest(
        "tap_ones", (tap, output), (word,), (Value(per_tap, (tap.var, output.var), ones, integer(0), add),)
    )
    y, z = (Axis(tirx.Var(name, "int32"), int(d)) for name, d in zip("yz", constants.shape[:2], strict=True))
    kh, kw = Axis(tirx.Var("kh", "int32"), kernel[0]), Axis(tirx.Var("kw", "int32"), kernel[1])
    inside, _, _ = input_position(y.var, z.var, kh.var, kw.var, hw, stride, padding)
    reached = tirx.if_then_else(inside, channels - 2 * per_tap[kh.var * kernel[1] + kw.var, output.var], 0)
    total = LoopNest(
        "constants",
        (y, z, output),
        (kh, kw),
        (Value(constants, (y.var, z.var, output.var), reached, integer(0), add),),
    )
    return [generic.reduction(count), generic.reduction(total)]
