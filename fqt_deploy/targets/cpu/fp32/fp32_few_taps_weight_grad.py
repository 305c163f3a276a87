"""Weight gradients of fp32 convolutions with few taps, such as a first layer's: an accumulator for every tap."""

from __future__ import annotations

from typing import ClassVar

from tvm import te, tirx

from fqt_deploy.targets.cpu.features import CpuFeatures
from fqt_deploy.targets.cpu.fp32.fp32_convolution import padded_rows, schedule_rows
from fqt_deploy.targets.cpu.register_tile import (
    lanes_of,
    largest_divisor,
    new_schedule,
    placeholders,
    schedule_helpers,
    schedule_tile,
)
from fqt_deploy.targets.products import convolution_of

OPERANDS = 5
"""Number of registers that are not accumulators."""
_CHUNKS = 16
"""Number of partial sums: independent of the thread count, and shorter sums round less."""


class Fp32FewTapsWeightGradRule:
    """Takes ``conv2d_weight_grad`` with a multiple of 4 output channels and as many taps as there are registers."""

    ops: ClassVar[frozenset[str]] = frozenset({"conv2d_weight_grad", "grouped_conv_weight_grad"})

    def apply(self, function: tirx.PrimFunc, features: CpuFeatures) -> tirx.PrimFunc | None:
        """All taps of a vector of channels, summed over the positions of some samples; the gradient is read once."""
        layer = convolution_of(function, image=function.params[0], output=function.params[1])
        outputs, channels, *_ = (int(d) for d in function.params[-1].shape)
        if layer is None or (lanes := lanes_of(outputs)) is None:
            return None
        (oh, ow), kernel, stride = layer.output, layer.kernel, layer.stride
        x, g = placeholders(function)
        rows = padded_rows(x, layer.padding, layer.padding, "rows")
        run = kernel[1] * channels
        taps = kernel[0] * run
        if taps > 2 * features.accumulators - OPERANDS:
            return None
        chunks = largest_divisor(layer.samples, _CHUNKS)
        size = layer.samples // chunks
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
        sums = te.compute((taps, outputs), lambda t, o: te.sum(partial[q, t, o], axis=q), name="sums")
        result = te.compute(
            (outputs, channels, *kernel), lambda o, c, kh, kw: sums[kh * run + kw * channels + c, o], name="result"
        )
        schedule = new_schedule([x, g, result])
        vectors = largest_divisor(outputs // lanes, max(1, features.accumulators // taps))
        schedule_tile(
            schedule,
            schedule.get_sblock("total"),
            schedule.get_sblock("partial"),
            taps,
            vectors,
            unrolled=0,
            inner_axes=0,
            lane_count=lanes,
        )
        schedule_rows(schedule, "rows")
        schedule_helpers(schedule, ("sums", "result"))
        return schedule.mod["main"]
