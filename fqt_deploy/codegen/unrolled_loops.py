"""Loops that a trace unrolled, such as the steps of a recurrent layer, known by how they read their sequences."""

from __future__ import annotations

import torch
from torch import fx

from fqt_deploy.core.call import call_of, source_of

aten = torch.ops.aten

FEWEST_STEPS = 4
"""Places along an axis that are read one by one: from so many on they are taken for the steps of a loop."""


def belongs_to_loop(node: fx.Node) -> bool:
    """Whether ``node`` is one of many places along an axis that are read one by one, or the value that they are of.

    So a recurrent layer reads its sequence. Written down, all steps are alike: a kernel that computed its place in the
    sequence would be another one for each step, and their number, not their work, is what compiling takes.
    """
    place = _single_place(node)
    return (place is not None and place[1] in _loops(place[0])) or _is_read_in_steps(node)


def _is_read_in_steps(node: fx.Node) -> bool:
    views = [user for user in node.users if user.target is aten.view.default]
    return bool(_loops(node)) or any(_is_read_in_steps(view) for view in views)


def _loops(source: fx.Node) -> set[int]:
    """The axes of ``source`` but for the last that are read at ``FEWEST_STEPS`` places or more, one by one."""
    places: dict[int, set[object]] = {}
    for user in source.users:
        if (place := _single_place(user)) is not None:
            places.setdefault(place[1], set()).add(user.args)
    last = source.meta["val"].dim() - 1 if places else 0
    return {axis for axis, found in places.items() if axis < last and len(found) >= FEWEST_STEPS}


def _single_place(node: fx.Node) -> tuple[fx.Node, int] | None:
    """The operand and the axis of a selection, or of a slice that is 1 long; None of anything else."""
    if node.target not in (aten.select.int, aten.slice.Tensor):
        return None
    source, extents = source_of(node), node.meta["val"].shape
    axis = call_of(node).dim % source.meta["val"].dim()
    whole = node.target is aten.slice.Tensor and extents[axis] != 1
    return None if whole else (source, axis)
