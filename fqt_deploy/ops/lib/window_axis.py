"""Pooling windows along one axis: of one size and step, dilated, partial at the end, or adaptive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fqt_deploy.ops.lib.late_modules import tirx
from fqt_deploy.ops.lib.onnx_body import Body


@dataclass(frozen=True)
class WindowAxis:
    """Windows over ``extent`` positions: window ``o`` begins at ``o * step // parts - offset``.

    Attributes:
        extent: positions of the axis.
        windows: windows.
        step: numerator of the distance of windows.
        parts: its denominator; 1 but for adaptive pooling.
        offset: positions that the first window begins before the axis.
        span: window ``o`` ends before ``(o * step + span) // parts - offset``.
        dilation: positions from one element of a window to the next.
    """

    extent: int
    windows: int
    step: int
    parts: int
    offset: int
    span: int
    dilation: int

    def first(self, window: Any) -> Any:
        """Where a window begins; before the axis it may be negative."""
        return window * self.step // self.parts - self.offset

    def stop(self, window: Any) -> Any:
        """What a window ends before; it may lie behind the axis."""
        return (window * self.step + self.span) // self.parts - self.offset

    def positions(self, window: int) -> list[int]:
        """The elements of a window that lie on the axis."""
        inside = range(self.first(window), self.stop(window), self.dilation)
        return [at for at in inside if 0 <= at < self.extent]

    def divisor(self, window: int, counted: int) -> int:
        """Elements of a window, ``counted`` positions on either side of the axis included."""
        return min(self.stop(window), self.extent + counted) - max(self.first(window), -counted)

    @property
    def taps(self) -> int:
        """Elements of the largest window."""
        return max(-(-(self.stop(o) - self.first(o)) // self.dilation) for o in range(self.windows))

    @property
    def readers(self) -> int:
        """Windows that follow each other and of which one may hold any one position, at most."""
        return max(
            1, *(sum(self.first(o) <= at < self.stop(o) for o in range(self.windows)) for at in range(self.extent))
        )

    def element(self, window: Any, tap: Any) -> tuple[Any, Any]:
        """Whether a tap of a window lies on the axis, and where."""
        at = self.first(window) + tap * self.dilation
        return tirx.all(at >= 0, at < self.extent, at < self.stop(window)), at

    def reader(self, position: Any, number: Any) -> tuple[Any, Any]:
        """Whether there is a ``number``-th window that spans a position, and which."""
        earliest = (position + self.offset + 1) * self.parts - self.span
        window = tirx.max((earliest + (self.step - 1)) // self.step, 0) + number
        return tirx.all(window < self.windows, self.first(window) <= position), window


def onnx_windows(op: Body, extent: str) -> tuple[str, str, str]:
    """The bounds of windows in ONNX, from the attributes of ``WindowAxis``.

    Args:
        op: the body.
        extent: of the axis, [1] int64.

    Returns:
        Beginning and end of every window, [windows] int64, and which positions each holds, [windows, extent] bool.
    """
    window = op.range(op.integer("windows"))
    along = op("Mul", window, op.integer("step"))
    first = op("Sub", op("Div", along, op.integer("parts")), op.integer("offset"))
    stop = op("Sub", op("Div", op("Add", along, op.integer("span")), op.integer("parts")), op.integer("offset"))
    from_first = op("Sub", op.range(extent), op.unsqueeze(first, 1))
    on_tap = op("Equal", op("Mod", from_first, op.integer("dilation")), op.constant(0, "int64"))
    begun = op("GreaterOrEqual", from_first, op.constant(0, "int64"))
    ended = op("Less", op.range(extent), op.unsqueeze(stop, 1))
    return first, stop, op("And", on_tap, op("And", begun, ended))
