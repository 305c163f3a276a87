"""The index of an element after a change of shape."""

from __future__ import annotations

from typing import Any

from fqt_deploy.ops.lib.late_modules import tirx


def reshape_index(index: tuple[Any, ...], target: list[int], source: list[int]) -> list[Any]:
    """The place where element ``index`` of a tensor viewed as ``target`` lies in its ``source`` shape.

    Axes are matched in groups of equal size, so that an axis common to both shapes stays a plain index.
    """
    out: list[Any] = [0] * len(source)
    t, s = 0, 0
    while t < len(target) or s < len(source):
        t_end, s_end = t, s
        t_size, s_size = 1, 1
        first = True
        while first or t_size != s_size:
            first = False
            if (t_size <= s_size and t_end < len(target)) or s_end == len(source):
                t_size *= target[t_end]
                t_end += 1
            else:
                s_size *= source[s_end]
                s_end += 1
        flat: Any = 0
        for axis in range(t, t_end):
            if target[axis] != 1:
                flat = flat * target[axis] + index[axis]
        axes = [axis for axis in range(s, s_end) if source[axis] != 1]
        for axis in reversed(axes):
            last = axis == axes[0]
            out[axis] = flat if last else tirx.floormod(flat, source[axis])
            flat = flat if last else tirx.floordiv(flat, source[axis])
        t, s = t_end, s_end
    return out
