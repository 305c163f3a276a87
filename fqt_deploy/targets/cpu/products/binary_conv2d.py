"""1-bit convolution: a register tile of positions and channels over a zero-padded copy of the bits."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import te, tirx

from fqt_deploy.ops.lib.convolution_shape import input_position
from fqt_deploy.ops.lib.packed_words import PANEL, popcount
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.products.register_tile import (
    arguments_of,
    largest_divisor,
    new_schedule,
    placeholders,
    schedule_helpers,
    schedule_padding,
    schedule_tile,
)
from fqt_deploy.targets.tuning_log import Tile

SHORT_CONTRACTION = 40
"""Words that LLVM unrolls: with them in registers, sixteen accumulators are spilled, and half as many are faster."""


class BinaryConv2dRule:
    """Takes ``binary_conv2d`` with a multiple of 16 output channels."""

    ops: ClassVar[frozenset[str]] = frozenset({"binary_conv2d"})

    def tiles(self, function: tirx.PrimFunc, features: CpuFeatures) -> tuple[Tile, ...]:
        """Positions and vectors of 16 channels, as many as there are accumulators or fewer."""
        arguments = arguments_of(function)
        if arguments is None or arguments[3] % PANEL:
            return ()
        width, panels = int(function.params[-1].shape[2]), arguments[3] // PANEL
        default = _default_tile(width, panels, int(function.params[1].shape[1]), features)
        limits = [(rows, count) for rows in (8, 4, 2, 1) for count in (1, 2, 4, 8)]
        found = [(largest_divisor(width, rows), largest_divisor(panels, count)) for rows, count in limits]
        fitting = [(rows, count) for rows, count in found if rows * count <= features.accumulators]
        return tuple(dict.fromkeys([default, *fitting]))

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures, tile: Tile | None = None) -> tirx.PrimFunc | None:
        """Differing bits of the padded image, subtracted from a constant for each kind of border."""
        arguments = arguments_of(function)
        if arguments is None or arguments[3] % PANEL:
            return None
        _, _, channels, outputs, kernel, stride, padding = arguments
        x, w = placeholders(function)
        n, height, width, words = (int(d) for d in x.shape)
        _, oh, ow, _ = (int(d) for d in function.params[-1].shape)
        padded_shape = (n, height + 2 * padding[0], width + 2 * padding[1], words)

        def shifted(b: Any, h: Any, v: Any, word: Any) -> Any:
            y, z = h - padding[0], v - padding[1]
            inside = tirx.all(y >= 0, y < height, z >= 0, z < width)
            return tirx.if_then_else(inside, x[b, y, z, word], 0)

        image = te.compute(padded_shape, shifted, name="padded") if any(padding) else x
        word = te.reduce_axis((0, words), "word")
        taps = te.compute(
            (kernel[0] * kernel[1], outputs),
            lambda t, o: te.sum(popcount(w[o // PANEL, t * words + word, o % PANEL]), axis=word),
            name="ones",
        )
        row_class, row_examples = _border_classes(oh, height, kernel[0], stride[0], padding[0], "row_class")
        column_class, column_examples = _border_classes(ow, width, kernel[1], stride[1], padding[1], "column_class")
        a, b = te.reduce_axis((0, kernel[0]), "a"), te.reduce_axis((0, kernel[1]), "b")

        def constant(r: Any, c: Any, o: Any) -> Any:
            at = _chosen(r, row_examples), _chosen(c, column_examples)
            inside, _, _ = input_position(*at, a, b, [height, width], stride, padding)
            outside = 2 * taps[a * kernel[1] + b, o]
            return te.sum(tirx.if_then_else(inside, channels, outside), axis=[a, b])

        constants = te.compute((len(row_examples), len(column_examples), outputs), constant, name="constants")
        kh, kw = te.reduce_axis((0, kernel[0]), "kh"), te.reduce_axis((0, kernel[1]), "kw")
        k = te.reduce_axis((0, words), "k")
        total = te.compute(
            (n, oh, ow, outputs),
            lambda i, y, z, o: te.sum(
                popcount(
                    image[i, y * stride[0] + kh, z * stride[1] + kw, k]
                    ^ w[o // PANEL, (kh * kernel[1] + kw) * words + k, o % PANEL]
                ),
                axis=[kh, kw, k],
            ),
            name="total",
        )
        dtype = str(function.params[-1].dtype)

        def finish(i: Any, y: Any, z: Any, o: Any) -> Any:
            full = channels * kernel[0] * kernel[1]
            largest = constants[row_class[y], column_class[z], o] if any(padding) else full
            return (largest - 2 * total[i, y, z, o]).astype(dtype)

        result = te.compute(total.shape, finish, name="result")
        schedule = new_schedule([x, w, result])
        contraction = kernel[0] * kernel[1] * words
        rows, panels = tile or _default_tile(ow, outputs // PANEL, contraction, features)
        schedule_tile(
            schedule,
            schedule.get_sblock("total"),
            schedule.get_sblock("result"),
            largest_divisor(ow, rows),
            largest_divisor(outputs // PANEL, panels),
            unrolled=1,
            inner_axes=0,
        )
        if any(padding):
            schedule_padding(schedule, schedule.get_sblock("padded"))
            schedule_helpers(schedule, ("ones", "row_class", "column_class", "constants"))
        return schedule.mod["main"]


def _default_tile(width: int, panels: int, words: int, features: CpuFeatures) -> Tile:
    """Positions times vectors: as many as there are accumulators; four times two if the contraction is short."""
    most, positions = (8, 4) if words <= SHORT_CONTRACTION else (features.accumulators, 8)
    accumulators = min(most, features.accumulators)
    rows = largest_divisor(width, min(positions, accumulators))
    return rows, largest_divisor(panels, max(1, accumulators // rows))


def _border_classes(
    outputs: int, extent: int, kernel: int, stride: int, padding: int, name: str
) -> tuple[te.Tensor, list[int]]:
    """Output positions along one axis by which of their taps lie inside: class of each, an example of each class."""
    patterns: dict[tuple[bool, ...], int] = {}
    classes = []
    for position in range(outputs):
        taps = tuple(0 <= position * stride + tap - padding < extent for tap in range(kernel))
        classes.append(patterns.setdefault(taps, len(patterns)))
    examples = [classes.index(number) for number in range(len(patterns))]
    ends = [i for i in range(1, outputs) if classes[i] != classes[i - 1]]

    def class_at(position: Any) -> Any:
        found: Any = classes[-1]
        for end in reversed(ends):
            found = tirx.Select(position < end, classes[end - 1], found)
        return found if isinstance(found, tirx.Select) else tirx.const(found, "int32")

    return te.compute((outputs,), class_at, name=name), examples


def _chosen(index: Any, values: list[int]) -> Any:
    """``values[index]`` as an expression."""
    found: Any = tirx.const(values[-1], "int32")
    for i, value in enumerate(values[:-1]):
        found = tirx.Select(index.equal(i), value, found)
    return found
