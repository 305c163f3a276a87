"""What the largest code takes off a product of levels with weights: sums of their levels inside of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.products.popcount.convolution import BorderClasses, border_classes, chosen
from fqt_deploy.targets.products import LevelConvolution


@dataclass(frozen=True)
class BorderSigns:
    """The kinds of positions of a result, by which of their taps lie inside of the image.

    A level of a signed grid is twice its code less the largest one, so a sum of levels is twice that of codes less the
    largest code times the sum of the weight's levels, or signs, over the taps inside. There is one such constant for a
    kind and a column.
    """

    product: LevelConvolution

    @property
    def classes(self) -> tuple[BorderClasses, BorderClasses]:
        """The kinds of borders along rows and columns of the result."""
        p = self.product
        rows, columns = (
            border_classes(*axis) for axis in zip(p.output, p.image, p.kernel, p.stride, p.padding, strict=True)
        )
        return rows, columns

    @property
    def kinds(self) -> tuple[int, int]:
        """Numbers of kinds of borders along rows and columns."""
        return len(self.classes[0].examples), len(self.classes[1].examples)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Extents of the constants: kinds of rows, kinds of columns, columns of the result; empty for unsigned codes.

        A kernel allocates what it declares, needed or not.
        """
        return (*self.kinds, self.product.columns) if self.product.signed else (1, 1, PANEL)

    def kind(self, y: Any, z: Any) -> tuple[Any, Any]:
        """The kind of a position of the result."""
        return self.classes[0].at(y), self.classes[1].at(z)

    def reads_image(self, row: Any, column: Any, tap: Any) -> Any:
        """Whether a tap lies in the image, for a kind of border."""
        at = chosen(row, self.classes[0].examples), chosen(column, self.classes[1].examples)
        return self.product.input_position(at, self.product.tap(tap))[0]

    def twice_ones(self, weight: Any, panel: Any, row: Any) -> Any:
        """Twice the sums of the codes of a word of each column of a panel."""
        first, *others = (
            tirx.Broadcast(tirx.const(2 << plane, "int32"), PANEL) * tirx.popcount(words)
            for plane, words in enumerate(self.product.weight_words(weight, panel, row, T.ramp(0, 1, PANEL)))
        )
        return sum(others, first)

    def level(self, value: Any, constants: Any, kind: tuple[Any, Any], lanes: Any) -> Any:
        """The sums of levels for the columns ``lanes``, a ramp, from those of codes times signs."""
        if not self.product.signed:
            return value
        return value * tirx.Broadcast(tirx.const(2, "int32"), lanes.lanes) - constants[(*kind, lanes)]


@script.macro
def sum_signs(b: BorderSigns, weight: Any, constants: Any, panel: Any) -> None:
    """Sum a panel's levels over the taps inside of the image, for each kind of border, times the largest code."""
    ones = T.alloc_buffer((b.product.taps, PANEL), "int32")
    for tap in T.serial(b.product.taps):
        ones[tap, T.ramp(0, 1, PANEL)] = T.broadcast(-b.product.depth * b.product.largest_weight, PANEL)
        for word in T.serial(b.product.words):
            ones[tap, T.ramp(0, 1, PANEL)] = ones[tap, T.ramp(0, 1, PANEL)] + b.twice_ones(
                weight, panel, tap * b.product.words + word
            )
    for row, column in T.grid(b.kinds[0], b.kinds[1]):
        constants[row, column, T.ramp(panel * PANEL, 1, PANEL)] = T.broadcast(0, PANEL)
        for tap in T.serial(b.product.taps):
            if b.reads_image(row, column, tap):
                constants[row, column, T.ramp(panel * PANEL, 1, PANEL)] = constants[
                    row, column, T.ramp(panel * PANEL, 1, PANEL)
                ] + ones[tap, T.ramp(0, 1, PANEL)] * T.broadcast(b.product.largest_code, PANEL)
