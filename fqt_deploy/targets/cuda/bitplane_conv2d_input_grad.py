"""Activation-gradient product on tensor cores: implicit matrix product of input positions and input channels."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx

from fqt_deploy.targets.cuda.bit_operand import Operand
from fqt_deploy.targets.cuda.bit_tile import bit_product
from fqt_deploy.targets.cuda.choose_form import form_for
from fqt_deploy.targets.cuda.features import CudaFeatures
from fqt_deploy.targets.cuda.kernel_builder import store
from fqt_deploy.targets.cuda.panel_columns import panel_columns, words_at_once
from fqt_deploy.targets.products import BitInputGradient, product_of


class BitplaneConv2dInputGradRule:
    """Schedules ``bitplane_conv2d_input_grad`` on tiles of bits."""

    ops: ClassVar[frozenset[str]] = frozenset({"bitplane_conv2d_input_grad"})

    def apply(self, function: tirx.PrimFunc, features: CudaFeatures) -> tirx.PrimFunc | None:
        """A position's planes are rows of the tile; taps that reach no output are zeros, which count nothing."""
        p = product_of(function)
        if not isinstance(p, BitInputGradient):
            return None
        form = form_for(features, p.bits)
        if form is None:
            return None
        planes, w, result = function.params
        places, width = p.image[0] * p.image[1], p.image[1]
        rows = p.samples * places

        def source(row: Any, plane: Any, word: Any) -> tuple[Any, Any, list[Any]]:
            sample, place = row // places, row % places
            tap, at = word // p.words, word % p.words
            inside, y, z = p.output_position((place // width, place % width), p.tap(tap))
            return tirx.all(row < rows, word < p.contraction, inside), planes, [sample, y, z, plane, at]

        def write(row: Any, column: Any, count: Any, ones: Any, _: Any) -> Any:
            place = row % places
            return store(result, 2 * count - ones, row // places, place // width, place % width, column)

        left, right = Operand(rows, p.bits, words_at_once(p.words), False, source), panel_columns(w, p.columns)
        return function.with_body(bit_product(form, left, right, p.contraction, write, count_rows=True))
