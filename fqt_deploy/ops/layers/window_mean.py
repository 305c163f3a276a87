"""``fqt::window_mean`` and its gradient: average pooling along one axis, with windows of any kind.

Average pooling over several axes is one of these for each, so these ops serve any number of axes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.layers.windowed_op import WindowedOp
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.lib.window_axis import WindowAxis, onnx_windows
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, Layout, Nan, keeps_sign, leads, zero_with_any

_SAMPLES = (
    (2, 7, 16, 4, 2, 1, 1, 3, 1, True),
    (2, 8, 5, 3, 3, 1, 1, 4, 0, True),
    (1, 6, 3, 3, 2, 1, 0, 3, 0, False),
    (2, 7, 16, 4, 7, 4, 0, 10, 0, True),
    (1, 2, 4, 5, 2, 5, 0, 6, 0, True),
    (2, 11, 4, 3, 1, 1, 1, 11, 1, True),
)
"""B, extent, C, windows, step, parts, offset, span, counted, divide: padding that counts, padding that does not and a
partial window, sums, adaptive windows, more of them than positions,
long windows that overlap."""


def _terms(axis: WindowAxis, counted: int, divide: bool) -> Tensor:
    """What each position counts in each window: [windows, extent] float32."""
    weight = torch.zeros(axis.windows, axis.extent)
    for window in range(axis.windows):
        weight[window, axis.positions(window)] = 1 / axis.divisor(window, counted) if divide else 1.0
    return weight


def _divisor(axis: WindowAxis, window: Any, counted: int) -> Any:
    """``WindowAxis.divisor`` in TE, as float32."""
    stop = tirx.min(axis.stop(window), axis.extent + counted)
    return (stop - tirx.max(axis.first(window), -counted)).astype("float32")


def _onnx_terms(op: Body, extent: str) -> str:
    """Writes the nodes that compute ``_terms``, and returns the name of the result."""
    first, stop, inside = onnx_windows(op, extent)
    counted = op.integer("counted")
    count = op("Sub", op("Min", stop, op("Add", extent, counted)), op("Max", first, op("Neg", counted)))
    divisor = op("Where", op.cast(op.integer("divide"), "bool"), op.cast(count, "float32"), op.constant(1, "float32"))
    return op("Div", op.cast(inside, "float32"), op.unsqueeze(divisor, 1))


@define(
    kind=Kind.PRODUCT,
    batch=leads("x"),
    zero=zero_with_any("x"),
    sign=keeps_sign("x"),
    nan=Nan.KEPT,
    layout=Layout.OPAQUE,
)
class WindowMean(WindowedOp):
    """Mean of every window, or its sum.

    Attributes:
        counted: positions on either side of the axis that count as elements.
        divide: whether to divide by their number.

    Returns:
        [B, windows, C] float32.
    """

    counted: int
    divide: bool

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        return torch.einsum("ol,blc->boc", _terms(self.axis(), self.counted, self.divide), self.x).contiguous()

    def compute(self) -> te.Tensor:
        """Sum over the elements of a window, then the division."""
        axis, (samples, _, channels) = self.axis(), (int(d) for d in self.x.shape)
        tap = te.reduce_axis((0, axis.taps), "tap")

        def term(b: Any, o: Any, c: Any) -> Any:
            inside, at = axis.element(o, tap)
            return te.sum(tirx.if_then_else(inside, self.x[b, at, c], tirx.const(0.0, "float32")), axis=tap)

        total = te.compute((samples, self.windows, channels), term, name="window_mean_total")
        if not self.divide:
            return total
        return te.compute(
            total.shape, lambda b, o, c: total[b, o, c] / _divisor(axis, o, self.counted), name="window_mean"
        )

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Yields the calls of ``_SAMPLES``."""
        g = torch.Generator().manual_seed(0)
        for samples, extent, channels, *rest in _SAMPLES:
            yield torch.randn(samples, extent, channels, generator=g), *rest

    def onnx_body(self, op: Body) -> str:
        """A matrix product with what each position counts."""
        return op("MatMul", _onnx_terms(op, op.extent(self.x, 1)), self.x)

    def onnx_attributes(self) -> dict[str, Any]:
        """Those of the op, and that windows have no gaps."""
        return {**super().onnx_attributes(), "dilation": 1}


@define(
    kind=Kind.PRODUCT,
    batch=leads("gradient"),
    zero=zero_with_any("gradient"),
    sign=ANY_SIGN,
    nan=Nan.UNKNOWN,
    layout=Layout.OPAQUE,
)
class WindowMeanBackward(FqtOp):
    """Spread the gradient of every window over its elements.

    Attributes:
        gradient: [B, windows, C] float32.
        extent: positions of the axis.
        step: this and the next five are those of ``window_mean``.
        parts: denominator of the distance.
        offset: positions that the first window begins before the axis.
        span: where windows end.
        counted: positions on either side of the axis that count as elements.
        divide: whether the sum was divided.

    Returns:
        [B, extent, C] float32.
    """

    gradient: Operand
    extent: int
    step: int
    parts: int
    offset: int
    span: int
    counted: int
    divide: bool

    def axis(self) -> WindowAxis:
        """Returns the windows along the axis."""
        windows = int(self.gradient.shape[1])
        return WindowAxis(self.extent, windows, self.step, self.parts, self.offset, self.span, 1)

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        return torch.einsum("ol,boc->blc", _terms(self.axis(), self.counted, self.divide), self.gradient).contiguous()

    def fake(self) -> Tensor:
        """Shape rule: [B, windows, C] -> [B, extent, C]."""
        return self.gradient.new_empty((self.gradient.shape[0], self.extent, self.gradient.shape[2]))

    def compute(self) -> te.Tensor:
        """Sum over the windows that hold a position."""
        axis, (samples, _, channels) = self.axis(), (int(d) for d in self.gradient.shape)
        number = te.reduce_axis((0, axis.readers), "window")

        def term(b: Any, at: Any, c: Any) -> Any:
            there, window = axis.reader(at, number)
            share = self.gradient[b, window, c]
            if self.divide:
                share = share / _divisor(axis, window, self.counted)
            return te.sum(tirx.if_then_else(there, share, tirx.const(0.0, "float32")), axis=number)

        return te.compute((samples, self.extent, channels), term, name="window_mean_backward")

    def cost(self) -> Cost:
        """A division and an addition a window."""
        x = self.fake()
        return Cost(flops=2 * self.axis().readers * x.numel(), bytes_moved=tensor_bytes(self.gradient, x))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Yields the windows of the samples of ``window_mean``."""
        g = torch.Generator().manual_seed(0)
        for samples, extent, channels, windows, *rest in _SAMPLES:
            yield torch.randn(samples, windows, channels, generator=g), extent, *rest

    def onnx_body(self, op: Body) -> str:
        """A matrix product with what each position counts, transposed."""
        terms = _onnx_terms(op, op.reshape(op.integer("extent"), 1))
        return op("MatMul", op("Transpose", terms, perm=[1, 0]), self.gradient)

    def onnx_attributes(self) -> dict[str, Any]:
        """Those of the op, and how many windows there are."""
        return {**super().onnx_attributes(), "windows": int(self.gradient.shape[1]), "dilation": 1}
