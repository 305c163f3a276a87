"""fp32 convolutions: register tiles over zero-padded rows, in which a row of taps is one contiguous run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from tvm import te, tirx

from fqt_deploy.ops.packed_words import PANEL
from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.register_tile import (
    arguments_of,
    largest_divisor,
    new_schedule,
    placeholders,
    schedule_helpers,
    schedule_padding,
    schedule_tile,
)

OPERANDS = 5
"""Registers that are not accumulators."""
_CHUNKS = 16
"""Partial sums of a weight gradient: independent of the thread count, and shorter sums round less."""


class Fp32ConvolutionRule:
    """Takes ``conv2d`` and ``conv2d_input_grad`` with a multiple of 16 result channels."""

    ops: ClassVar[frozenset[str]] = frozenset({"conv2d", "conv2d_input_grad"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """The input gradient is a convolution of the spread-out gradient with the kernel turned around."""
        arguments = arguments_of(function)
        result_shape = [int(d) for d in function.params[-1].shape]
        if arguments is None or result_shape[3] % PANEL:
            return None
        image, w = placeholders(function)
        kernel = [int(d) for d in w.shape[2:]]
        if str(function.attrs["fqt.op"]) == "conv2d":
            stride, padding = arguments[2:]
            rows = padded_rows(image, [padding[0], padding[1]], "rows")

            def weight(kh: Any, kw: Any, c: Any, o: Any) -> Any:
                return w[o, c, kh, kw]
        else:
            _, _, _, spread, padding = arguments
            border = [kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1]]
            extent = [result_shape[1] + kernel[0] - 1, result_shape[2] + kernel[1] - 1]
            rows, stride = spread_rows(image, border, spread, extent), [1, 1]

            def weight(kh: Any, kw: Any, c: Any, o: Any) -> Any:
                return w[c, o, kernel[0] - 1 - kh, kernel[1] - 1 - kw]

        return _convolution(image, w, rows, weight, kernel, stride, result_shape, features.accumulators)


def _convolution(
    image: te.Tensor,
    w: te.Tensor,
    rows: te.Tensor,
    weight: Callable[..., Any],
    kernel: list[int],
    stride: list[int],
    result_shape: list[int],
    accumulators: int,
) -> tirx.PrimFunc:
    channels, outputs = int(image.shape[3]), result_shape[3]
    run = kernel[1] * channels
    panels = te.compute(
        (kernel[0], run, outputs), lambda kh, m, o: weight(kh, m // channels, m % channels, o), name="panels"
    )
    kh, m = te.reduce_axis((0, kernel[0]), "kh"), te.reduce_axis((0, run), "m")
    total = te.compute(
        result_shape,
        lambda n, y, z, o: te.sum(
            rows[n, y * stride[0] + kh, z * (stride[1] * channels) + m] * panels[kh, m, o], axis=[kh, m]
        ),
        name="total",
    )
    result = te.compute(result_shape, lambda *i: total[i], name="result")
    schedule = new_schedule([image, w, result])
    tile = largest_divisor(result_shape[2], min(8, accumulators))
    vectors = largest_divisor(outputs // PANEL, max(1, accumulators // tile))
    schedule_tile(
        schedule, schedule.get_sblock("total"), schedule.get_sblock("result"), tile, vectors, unrolled=0, inner_axes=0
    )
    schedule_padding(schedule, schedule.get_sblock("rows"))
    schedule_helpers(schedule, ("panels",))
    return schedule.mod["main"]


class Fp32WeightGradRule:
    """Takes ``conv2d_weight_grad`` with a multiple of 16 output channels."""

    ops: ClassVar[frozenset[str]] = frozenset({"conv2d_weight_grad"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """A tile of taps times output channels, summed over the positions of a chunk of samples.

        A first convolution has few taps: with one accumulator for each, the gradient is read once.
        """
        arguments = arguments_of(function)
        outputs, channels, *kernel = (int(d) for d in function.params[-1].shape)
        if arguments is None or outputs % PANEL:
            return None
        stride, padding = arguments[3:]
        x, g = placeholders(function)
        samples, oh, ow, _ = (int(d) for d in g.shape)
        rows = padded_rows(x, padding, "rows")
        run = kernel[1] * channels
        taps = kernel[0] * run
        chunks = largest_divisor(samples, _CHUNKS)
        size = samples // chunks
        b, y, z = te.reduce_axis((0, size), "b"), te.reduce_axis((0, oh), "y"), te.reduce_axis((0, ow), "z")
        total = te.compute(
            (chunks, taps, outputs),
            lambda q, t, o: te.sum(
                rows[q * size + b, y * stride[0] + t // run, z * (stride[1] * channels) + t % run]
                * g[q * size + b, y, z, o],
                axis=[b, y, z],
            ),
            name="total",
        )
        partial = te.compute(total.shape, lambda *i: total[i], name="partial")
        q = te.reduce_axis((0, chunks), "q")
        sums = te.compute(
            (taps, outputs), lambda t, o: te.sum(partial[q, t, o], axis=q), name="sums"
        )
        result = te.compute(
            (outputs, channels, *kernel), lambda o, c, kh, kw: sums[kh * run + kw * channels + c, o], name="result"
        )
        schedule = new_schedule([x, g, result])
        tile = taps if taps <= 2 * features.accumulators - OPERANDS else largest_divisor(run, min(9, features.accumulators))
        vectors = largest_divisor(outputs // PANEL, max(1, features.accumulators // tile))
        schedule_tile(
            schedule, schedule.get_sblock("total"), schedule.get_sblock("partial"), tile, vectors, unrolled=0, inner_axes=0
        )
        schedule_padding(schedule, schedule.get_sblock("rows"))
        schedule_helpers(schedule, ("sums", "result"))
        return schedule.mod["main"]


def padded_rows(image: te.Tensor, padding: list[int], name: str) -> te.Tensor:
    """[N, H + 2p, (W + 2p) * C]: zeros around, columns and channels one axis."""
    n, height, width, channels = (int(d) for d in image.shape)

    def element(b: Any, h: Any, r: Any) -> Any:
        y, at = h - padding[0], r - padding[1] * channels
        inside = tirx.all(y >= 0, y < height, at >= 0, at < width * channels)
        return tirx.if_then_else(inside, image[b, y, at // channels, at % channels], tirx.const(0.0, "float32"))

    return te.compute((n, height + 2 * padding[0], (width + 2 * padding[1]) * channels), element, name=name)


def spread_rows(gradient: te.Tensor, border: list[int], stride: list[int], extent: list[int]) -> te.Tensor:
    """[N, H', W' * C]: the gradient ``stride`` apart behind ``border`` zeros."""
    n, oh, ow, channels = (int(d) for d in gradient.shape)

    def at(b: Any, h: Any, r: Any) -> Any:
        y, z = h - border[0], r // channels - border[1]
        aligned = tirx.all(tirx.floormod(y, stride[0]).equal(0), tirx.floormod(z, stride[1]).equal(0))
        y, z = tirx.floordiv(y, stride[0]), tirx.floordiv(z, stride[1])
        inside = tirx.all(aligned, y >= 0, y < oh, z >= 0, z < ow)
        return tirx.if_then_else(inside, gradient[b, y, z, r % channels], tirx.const(0.0, "float32"))

    return te.compute((n, extent[0], extent[1] * channels), at, name="rows")
