"""Activation-gradient product on tensor cores: implicit matrix product of input positions and input channels."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx

from fqt_deploy.ops.lib.convolution_shape import output_position
from fqt_deploy.targets.cuda.bit_operand import Operand
from fqt_deploy.targets.cuda.bit_tile import bit_product
from fqt_deploy.targets.cuda.choose_form import form_for
from fqt_deploy.targets.cuda.features import CudaFeatures
from fqt_deploy.targets.cuda.kernel_builder import store
from fqt_deploy.targets.cuda.product_arguments import arguments_of, panel_columns, words_at_once


class BitplaneConv2dInputGradRule:
    """Takes ``bitplane_conv2d_input_grad``."""

    ops: ClassVar[frozenset[str]] = frozenset({"bitplane_conv2d_input_grad"})

    def apply(self, function: tirx.PrimFunc, features: CudaFeatures) -> tirx.PrimFunc | None:
        """A position's planes are rows of the tile; taps that reach no output are zeros, which count nothing."""
        arguments = arguments_of(function)
        if arguments is None:
            return None
        _, _, channels, _, hw, kernel, stride, padding = arguments
        planes, w, result = function.params
        n, oh, ow, bits, words = (int(d) for d in planes.shape)
        form = form_for(features, bits)
        if form is None:
            return None
        rows, total_words = n * hw[0] * hw[1], kernel[0] * kernel[1] * words

        def source(row: Any, plane: Any, word: Any) -> tuple[Any, Any, list[Any]]:
            sample, place = row // (hw[0] * hw[1]), row % (hw[0] * hw[1])
            tap, at = word // words, word % words
            inside, y, z = output_position(
                place // hw[1], place % hw[1], tap // kernel[1], tap % kernel[1], [oh, ow], stride, padding
            )
            return tirx.all(row < rows, word < total_words, inside), planes, [sample, y, z, plane, at]

        def write(row: Any, column: Any, count: Any, ones: Any, _: Any) -> Any:
            place = row % (hw[0] * hw[1])
            at = (row // (hw[0] * hw[1]), place // hw[1], place % hw[1], column)
            return store(result, 2 * count - ones, *at)

        left = Operand(rows, bits, words_at_once(words), False, source)
        product = bit_product(form, left, panel_columns(w, channels, total_words), total_words, write, count_rows=True)
        return function.with_body(product)
