"""``fqt::window_max``, ``window_argmax`` and the gradient: maximum pooling along one axis, with windows of any kind.

Maximum pooling over several axes is one of these for each, from the last axis on: the first of equal elements wins, in
the order of memory, as in PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.layers.windowed_op import WindowedOp
from fqt_deploy.ops.lib.float32 import LOWEST_KEY, NAN_KEY, of_ordered_key, ordered_key
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.lib.window_axis import WindowAxis, onnx_windows
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, keeps_sign, leads, zero_with_any

_SAMPLES = (
    (2, 7, 16, 4, 2, 1, 1, 3, 1),
    (2, 8, 5, 3, 3, 1, 1, 4, 1),
    (2, 9, 8, 5, 1, 1, 0, 5, 2),
    (2, 7, 16, 4, 7, 4, 0, 10, 1),
    (1, 200, 3, 1, 200, 1, 0, 200, 1),
    (2, 11, 4, 3, 1, 1, 1, 11, 1),
)
"""B, extent, C, windows, step, parts, offset, span, dilation: padding, a partial window, dilation, adaptive windows, a
window of many elements, long windows that overlap."""


def _largest(call: Any) -> tuple[Tensor, Tensor]:
    """Maxima and their positions: element by element, as PyTorch's own kernel."""
    values, places, x = [], [], call.x
    for window in range(call.windows):
        first, *others = call.axis().positions(window)
        best, where = x[:, first], torch.full_like(x[:, first], first, dtype=torch.int32)
        for at in others:
            better = (x[:, at] > best) | x[:, at].isnan()
            best, where = torch.where(better, x[:, at], best), torch.where(better, at, where)
        values.append(best)
        places.append(where)
    return torch.stack(values, 1), torch.stack(places, 1).int()


def _largest_key(call: Any, name: str) -> te.Tensor:
    """The ordered keys of the maxima in TE, as stage ``name``; elements outside of the axis are minus infinity."""
    axis, (samples, _, channels) = call.axis(), (int(d) for d in call.x.shape)
    tap, lowest = te.reduce_axis((0, axis.taps), "tap"), tirx.const(LOWEST_KEY, "int32")

    def term(b: Any, o: Any, c: Any) -> Any:
        inside, at = axis.element(o, tap)
        return te.max(tirx.if_then_else(inside, ordered_key(call.x[b, at, c], math.inf), lowest), axis=tap)

    return te.compute((samples, call.windows, channels), term, name=name)


def _onnx_elements(op: Body, x: str) -> str:
    """[B, windows, L, C]: the elements of every window, and the lowest number at all other positions."""
    _, _, inside = onnx_windows(op, op.extent(x, 1))
    lowest = op.constant(float("-inf"), "float32")
    return op("Where", op.unsqueeze(inside, 2), op.unsqueeze(x, 1), lowest)


@define(
    kind=Kind.PRODUCT,
    batch=leads("x"),
    zero=zero_with_any("x"),
    sign=keeps_sign("x"),
    nan=Nan.KEPT,
    layout=Layout.OPAQUE,
)
class WindowMax(WindowedOp):
    """Largest element of every window.

    Attributes:
        dilation: positions from one element of a window to the next.

    Returns:
        [B, windows, C] float32.
    """

    dilation: int

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        return _largest(self)[0]

    def compute(self) -> te.Tensor:
        """A reduction over the taps, of integers that are ordered like the elements: NaN wins."""
        largest = _largest_key(self, "window_max_key")
        return te.compute(largest.shape, lambda *i: of_ordered_key(largest[i]), name="window_max")

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Yields the calls of ``_SAMPLES``, and one with ties."""
        g = torch.Generator().manual_seed(0)
        for samples, extent, channels, *rest in _SAMPLES:
            yield torch.randn(samples, extent, channels, generator=g), *rest
        yield torch.zeros(1, 5, 4), 3, 2, 1, 0, 3, 1
        special = torch.tensor([math.nan, math.inf, -math.inf, -2.0, 0.0, 1.0])
        yield special[torch.randint(6, (2, 11, 16), generator=g)], 5, 2, 1, 0, 3, 1
        yield torch.full((1, 5, 4), -math.inf), 3, 2, 1, 1, 3, 1

    def onnx_body(self, op: Body) -> str:
        """Largest of all positions, where those outside of the window are the lowest; ONNX Runtime passes over NaN."""
        elements, axis = _onnx_elements(op, self.x), op.constant([2], "int64")
        largest = op("ReduceMax", elements, axis, keepdims=0)
        nans = op("ReduceMax", op.cast(op("IsNaN", elements), "float32"), axis, keepdims=0)
        return op("Where", op("Greater", nans, op.constant(0.0, "float32")), op.constant(math.nan, "float32"), largest)


@define(kind=Kind.PRODUCT, batch=leads("x"), zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class WindowArgmax(WindowedOp):
    """Where the largest element of every window is.

    Attributes:
        dilation: positions from one element of a window to the next.

    Returns:
        Positions on the axis, [B, windows, C] int32.
    """

    dilation: int

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        return _largest(self)[1]

    def fake(self) -> Tensor:
        """Shape rule: [B, L, C] -> [B, windows, C], int32."""
        return self.x.new_empty((self.x.shape[0], self.windows, self.x.shape[2]), dtype=torch.int32)

    def compute(self) -> te.Tensor:
        """The first position whose element is the maximum; the last NaN, which counts as if it came before all."""
        axis, tap = self.axis(), te.reduce_axis((0, self.axis().taps), "tap")
        largest = _largest_key(self, "window_argmax_key")

        def term(b: Any, o: Any, c: Any) -> Any:
            inside, at = axis.element(o, tap)
            key, nowhere = ordered_key(self.x[b, at, c], math.inf), tirx.const(axis.extent, "int32")
            place = tirx.Select(key.equal(NAN_KEY), -1 - at, at)
            place = tirx.Select(key.equal(largest[b, o, c]), place, nowhere)
            return te.min(tirx.if_then_else(inside, place, nowhere), axis=tap)

        first = te.compute(largest.shape, term, name="window_argmax_first")
        shape = first.shape
        return te.compute(shape, lambda *i: tirx.Select(first[i] < 0, -1 - first[i], first[i]), name="window_argmax")

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Those of the maximum without NaN, whose position ONNX Runtime does not tell."""
        yield from (sample for sample in WindowMax.sample_inputs() if not sample[0].isnan().any())

    def onnx_body(self, op: Body) -> str:
        """Position of the largest of all, where those outside of the window are lower than minus infinity inside."""
        bounded = op("Max", self.x, op.constant(torch.finfo(torch.float32).min, "float32"))
        return op.cast(op("ArgMax", _onnx_elements(op, bounded), axis=2, keepdims=0), "int32")


@define(
    kind=Kind.PRODUCT,
    batch=leads("gradient", "position"),
    zero=zero_with_any("gradient"),
    sign=ANY_SIGN,
    nan=Nan.UNKNOWN,
    layout=Layout.OPAQUE,
)
class WindowMaxBackward(FqtOp):
    """Hand each window's gradient to its maximum.

    Attributes:
        gradient: [B, windows, C] float32.
        position: [B, windows, C] int32, as ``window_argmax`` gave it.
        extent: positions of the axis.
        step: this and the next four are those of ``window_max``.
        parts: denominator of the distance.
        offset: positions that the first window begins before the axis.
        span: where windows end.
        dilation: positions from one element to the next.

    Returns:
        [B, extent, C] float32.
    """

    gradient: Operand
    position: Operand
    extent: int
    step: int
    parts: int
    offset: int
    span: int
    dilation: int

    def axis(self) -> WindowAxis:
        """Returns the windows along the axis."""
        windows = int(self.gradient.shape[1])
        return WindowAxis(self.extent, windows, self.step, self.parts, self.offset, self.span, self.dilation)

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        samples, _, channels = self.gradient.shape
        spread = self.gradient.new_zeros(samples, self.extent, channels)
        return spread.scatter_add(1, self.position.long(), self.gradient)

    def fake(self) -> Tensor:
        """Shape rule: [B, windows, C] -> [B, extent, C]."""
        if self.gradient.shape != self.position.shape:
            raise ValueError(
                f"gradient {tuple(self.gradient.shape)} and positions {tuple(self.position.shape)} differ in shape"
            )
        return self.gradient.new_empty((self.gradient.shape[0], self.extent, self.gradient.shape[2]))

    def compute(self) -> te.Tensor:
        """Sum over the windows around a position, of those whose maximum it is."""
        axis, (samples, _, channels) = self.axis(), (int(d) for d in self.gradient.shape)
        number = te.reduce_axis((0, axis.readers), "window")

        def term(b: Any, at: Any, c: Any) -> Any:
            there, window = axis.reader(at, number)
            zero = tirx.const(0.0, "float32")
            own = tirx.Select(self.position[b, window, c].equal(at), self.gradient[b, window, c], zero)
            return te.sum(tirx.if_then_else(there, own, zero), axis=number)

        return te.compute((samples, self.extent, channels), term, name="window_max_backward")

    def cost(self) -> Cost:
        """A comparison and an addition a window."""
        x = self.fake()
        moved = tensor_bytes(self.gradient, self.position, x)
        return Cost(flops=2 * self.axis().readers * x.numel(), bytes_moved=moved)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The windows of ``window_max``'s samples."""
        g = torch.Generator().manual_seed(1)
        for x, windows, *rest in WindowMax.sample_inputs():
            position = WindowArgmax(x, windows, *rest).reference()
            yield torch.randn(position.shape, generator=g), position, x.shape[1], *rest

    def onnx_body(self, op: Body) -> str:
        """Writes one ScatterElements node that adds the gradients at their positions."""
        shape = op.shape(op.extent(self.gradient, 0), op.reshape(op.integer("extent"), 1), op.extent(self.gradient, 2))
        nothing = op("Expand", op.constant(0.0, "float32"), shape)
        position = op.cast(self.position, "int64")
        return op("ScatterElements", nothing, position, self.gradient, axis=1, reduction="add")
