"""1-bit convolution by popcount: a register tile of positions and channels over a zero-padded copy of the bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import te, tirx

from fqt_deploy.ops.lib.packed_words import PANEL, popcount
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.form import POPCOUNT
from fqt_deploy.targets.cpu.register_tile import (
    largest_divisor,
    new_schedule,
    schedule_helpers,
    schedule_padding,
    schedule_tile,
)
from fqt_deploy.targets.products import BitConvolution
from fqt_deploy.targets.tuning_log import Tile

SHORT_CONTRACTION = 40
"""Upper bound of the words that LLVM unrolls: with them in registers, sixteen accumulators are spilled, and half as
many are faster.
"""


class PopcountConvolution:
    """Differing bits of the padded image, subtracted from a constant for each kind of border."""

    name: ClassVar[str] = POPCOUNT

    def accepts(self, product: BitConvolution, features: CpuFeatures) -> bool:
        """Whether the product has whole panels; any processor can count bits."""
        return product.has_whole_panels

    def tiles(self, product: BitConvolution, features: CpuFeatures) -> tuple[Tile, ...]:
        """Positions and vectors of 16 channels, as many as there are accumulators or fewer."""
        width, panels = product.output[1], product.panels
        limits = [(rows, count) for rows in (8, 4, 2, 1) for count in (1, 2, 4, 8)]
        found = [(largest_divisor(width, rows), largest_divisor(panels, count)) for rows, count in limits]
        fitting = [(rows, count) for rows, count in found if rows * count <= features.accumulators]
        return tuple(dict.fromkeys([_default_tile(product, features), *fitting]))

    def kernel(self, product: BitConvolution, tile: Tile, features: CpuFeatures) -> tirx.PrimFunc:
        """Counts of differing bits in registers; constants are computed before."""
        p = product
        (oh, ow), (kernel_h, kernel_w), stride = p.output, p.kernel, p.stride
        x = te.placeholder((p.samples, *p.image, p.words), "int32", name="operand0")
        w = te.placeholder((p.panels, p.contraction, PANEL), "int32", name="operand1")
        image = padded_image(x, p)
        kh, kw = te.reduce_axis((0, kernel_h), "kh"), te.reduce_axis((0, kernel_w), "kw")
        k = te.reduce_axis((0, p.words), "k")
        total = te.compute(
            (p.samples, oh, ow, p.columns),
            lambda i, y, z, o: te.sum(
                popcount(
                    image[i, y * stride[0] + kh, z * stride[1] + kw, k]
                    ^ w[o // PANEL, (kh * kernel_w + kw) * p.words + k, o % PANEL]
                ),
                axis=[kh, kw, k],
            ),
            name="total",
        )
        borders = Borders.of(p)
        constants = _constants(w, p, *borders.examples)

        def finish(i: Any, y: Any, z: Any, o: Any) -> Any:
            largest = borders.at(constants, y, z, o) if p.is_padded else p.depth * p.taps
            return (largest - 2 * total[i, y, z, o]).astype(p.dtype)

        schedule = new_schedule([x, w, te.compute(total.shape, finish, name="result")])
        schedule_tile(
            schedule,
            schedule.get_sblock("total"),
            schedule.get_sblock("result"),
            largest_divisor(ow, tile[0]),
            largest_divisor(p.panels, tile[1]),
            unrolled=1,
            inner_axes=0,
        )
        if p.is_padded:
            schedule_padding(schedule, schedule.get_sblock("padded"))
            schedule_helpers(schedule, ("ones", "row_class", "column_class", "constants"))
        return schedule.mod["main"]


def _default_tile(product: BitConvolution, features: CpuFeatures) -> Tile:
    """The default tile: as many positions times vectors as accumulators; four times two for a short contraction."""
    most, positions = (8, 4) if product.contraction <= SHORT_CONTRACTION else (features.accumulators, 8)
    accumulators = min(most, features.accumulators)
    rows = largest_divisor(product.output[1], min(positions, accumulators))
    return rows, largest_divisor(product.panels, max(1, accumulators // rows))


def padded_image(x: te.Tensor, p: BitConvolution) -> te.Tensor:
    """The packed input [N, H, W, ...] in a border of words of zeros; as it is without padding."""
    if not p.is_padded:
        return x
    (height, width), padding = p.image, p.padding

    def shifted(b: Any, h: Any, v: Any, *rest: Any) -> Any:
        y, z = h - padding[0], v - padding[1]
        inside = tirx.all(y >= 0, y < height, z >= 0, z < width)
        return tirx.if_then_else(inside, x[(b, y, z, *rest)], 0)

    shape = (p.samples, height + 2 * padding[0], width + 2 * padding[1], *x.shape[3:])
    return te.compute(shape, shifted, name="padded")


@dataclass(frozen=True)
class Borders:
    """The positions of a result by which of their taps lie inside of the image.

    Attributes:
        rows: class of each row.
        columns: class of each column.
        examples: a row of each class, and a column of each class.
    """

    rows: te.Tensor
    columns: te.Tensor
    examples: tuple[list[int], list[int]]

    @classmethod
    def of(cls, p: BitConvolution) -> Borders:
        """The classes of a convolution's positions."""
        names = ("row_class", "column_class")
        axes = zip(p.output, p.image, p.kernel, p.stride, p.padding, strict=True)
        classes = [border_classes(*axis) for axis in axes]
        rows, columns = (
            te.compute((len(found.of),), found.at, name=name) for found, name in zip(classes, names, strict=True)
        )
        return cls(rows, columns, (classes[0].examples, classes[1].examples))

    def at(self, constants: te.Tensor, y: Any, z: Any, o: Any) -> Any:
        """The constant of a position, of [row class, column class, channel]."""
        return constants[self.rows[y], self.columns[z], o]


def _constants(w: te.Tensor, p: BitConvolution, rows: list[int], columns: list[int]) -> te.Tensor:
    """The sums if no bit differed, [row class, column class, channel], with what padded taps count taken back."""
    taps = tap_ones(w, p)
    a, b = te.reduce_axis((0, p.kernel[0]), "a"), te.reduce_axis((0, p.kernel[1]), "b")

    def constant(r: Any, c: Any, o: Any) -> Any:
        inside, _, _ = p.input_position((chosen(r, rows), chosen(c, columns)), (a, b))
        outside = 2 * taps[a * p.kernel[1] + b, o]
        return te.sum(tirx.if_then_else(inside, p.depth, outside), axis=[a, b])

    return te.compute((len(rows), len(columns), p.columns), constant, name="constants")


def tap_ones(w: te.Tensor, p: BitConvolution) -> te.Tensor:
    """The ones of the weight of each tap and channel."""
    word = te.reduce_axis((0, p.words), "word")
    return te.compute(
        (p.taps, p.columns),
        lambda t, o: te.sum(popcount(w[o // PANEL, t * p.words + word, o % PANEL]), axis=word),
        name="ones",
    )


@dataclass(frozen=True)
class BorderClasses:
    """The positions along one axis of a result by which of the kernel's taps lie inside of the image.

    Attributes:
        of: class of each position.
        examples: a position of each class.
    """

    of: list[int]
    examples: list[int]

    def at(self, position: Any) -> Any:
        """The class of a position, as an expression."""
        found: Any = self.of[-1]
        for end in reversed([i for i in range(1, len(self.of)) if self.of[i] != self.of[i - 1]]):
            found = tirx.Select(position < end, self.of[end - 1], found)
        return found if isinstance(found, tirx.Select) else tirx.const(found, "int32")


def border_classes(outputs: int, extent: int, kernel: int, stride: int, padding: int) -> BorderClasses:
    """The classes of ``outputs`` positions over an image of ``extent``."""
    patterns: dict[tuple[bool, ...], int] = {}
    classes = []
    for position in range(outputs):
        taps = tuple(0 <= position * stride + tap - padding < extent for tap in range(kernel))
        classes.append(patterns.setdefault(taps, len(patterns)))
    return BorderClasses(classes, [classes.index(number) for number in range(len(patterns))])


def chosen(index: Any, values: list[int]) -> Any:
    """The value ``values[index]`` as an expression in a variable ``index``."""
    found: Any = tirx.const(values[-1], "int32")
    for i, value in enumerate(values[:-1]):
        found = tirx.Select(index.equal(i), value, found)
    return found
