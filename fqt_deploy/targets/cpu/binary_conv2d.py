"""1-bit convolution: a register tile of positions and channels over a zero-padded copy of the bits."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import te, tirx

from fqt_deploy.ops.convolution_shape import input_position
from fqt_deploy.ops.packed_words import PANEL, popcount
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.register_tile import (
    arguments_of,
    largest_divisor,
    new_schedule,
    placeholders,
    schedule_helpers,
    schedule_tile,
)


class BinaryConv2dRule:
    """Takes ``binary_conv2d`` with a multiple of 16 output channels."""

    ops: ClassVar[frozenset[str]] = frozenset({"binary_conv2d"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """Differing bits of the padded image, subtracted from a constant for each position of the image."""
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
        a, b = te.reduce_axis((0, kernel[0]), "a"), te.reduce_axis((0, kernel[1]), "b")

        def constant(y: Any, z: Any, o: Any) -> Any:
            inside, _, _ = input_position(y, z, a, b, [height, width], stride, padding)
            outside = 2 * taps[a * kernel[1] + b, o]
            return te.sum(tirx.if_then_else(inside, channels, outside), axis=[a, b])

        constants = te.compute((oh, ow, outputs), constant, name="constants")
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
            largest = constants[y, z, o] if any(padding) else channels * kernel[0] * kernel[1]
            return (largest - 2 * total[i, y, z, o]).astype(dtype)

        result = te.compute(total.shape, finish, name="result")
        schedule = new_schedule([x, w, result])
        rows = largest_divisor(ow, min(8, features.accumulators))
        panels = largest_divisor(outputs // PANEL, max(1, features.accumulators // rows))
        schedule_tile(
            schedule, schedule.get_sblock("total"), schedule.get_sblock("result"), rows, panels, unrolled=1, inner_axes=0
        )
        schedule_helpers(schedule, ("padded", "ones", "constants") if any(padding) else ())
        return schedule.mod["main"]
