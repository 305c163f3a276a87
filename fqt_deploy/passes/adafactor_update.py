"""Adafactor as the end of a step: the moments of a matrix are a row and a column, so that they take next to no memory.

Before::

    grad/w = %g                                              # [rows, elements]

After::

    %row    = adafactor_row    + share (mean_elements(%g^2) - adafactor_row)
    %column = adafactor_column + share (mean_rows(%g^2) - adafactor_column)
    %v      = max(%row %column / max(mean(%row), eps), eps^2)
    %w      = fqt.scaled_update(param/w, %g / sqrt(%v), factor, ...)     # param/w (1 - lr decay) - factor %g / sqrt(%v)

with ``share = t^beta2_decay`` of the ``t``-th update, and
``factor = max(scale_floor, rms(param/w)) min(lr, 1 / sqrt(t)) / max(1, rms(%g / sqrt(%v)) / update_bound)``.
A vector keeps the mean of its squares itself (``adafactor_v``).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.graph import Emitter, behind_views, shape
from fqt_deploy.core.optimizer import Adafactor
from fqt_deploy.passes.update import Operands, Update

aten = torch.ops.aten
fqt = torch.ops.fqt


def adafactor_update(optimizer: Adafactor, axes: int) -> Update:
    """The update of a parameter that has this number of axes as [rows, elements], or fewer."""
    if axes == 2:
        extents = {"adafactor_row": lambda s: [s[0]], "adafactor_column": lambda s: [math.prod(s[1:])]}
    else:
        extents = {"adafactor_v": list}
    return Update(extents, lambda emit, operands: _updated(emit, operands, optimizer))


def _updated(emit: Emitter, operands: Operands, optimizer: Adafactor) -> list[fx.Node]:
    """The new parameter and state."""
    gradient, every = operands.gradient, operands.every
    if behind_views(gradient).target is not fqt.exchange_gradient.default:  # else backward would wait for the others
        emit = emit.behind(gradient)
    count = operands.count if every == 1 else emit(aten.div.Tensor_mode, operands.count, every, rounding_mode="floor")
    number = emit(aten._to_copy.default, count, dtype=torch.float32)
    share = emit(aten.pow.Tensor_Scalar, number, optimizer.beta2_decay)
    square = emit(aten.mul.Tensor, gradient, gradient)
    if len(operands.state) == 2:
        row, column = (
            _averaged(emit, state, emit(aten.mean.dim, square, [axis]), share)
            for state, axis in zip(operands.state, (1, 0), strict=True)
        )
        mean = emit(aten.clamp_min.default, emit(aten.mean.dim, row, [0]), optimizer.eps)
        of_rows = emit(aten.view.default, emit(aten.div.Tensor, row, mean), [shape(row)[0], 1])
        variance, state = emit(aten.mul.Tensor, of_rows, column), [row, column]
    else:
        variance = _averaged(emit, operands.state[0], square, share)
        state = [variance]
    bounded = emit(aten.clamp_min.default, variance, optimizer.eps**2)
    # Its size is taken from the squares, so that the update has one reader and is not written to memory.
    size = _root_mean(emit, emit(aten.div.Tensor, square, bounded))
    update = emit(aten.mul.Tensor, gradient, emit(aten.rsqrt.default, bounded))
    factor = _factor(emit, operands, number, size, optimizer)
    new = emit(
        fqt.scaled_update.default, operands.parameter, update, factor, operands.rates, operands.count, operands.group,
        optimizer.weight_decay, every,
    )  # fmt: skip
    if every > 1:
        due = emit(aten.eq.Scalar, emit(aten.remainder.Scalar, operands.count, every), 0)
        state = [emit(aten.where.self, due, value, old) for value, old in zip(state, operands.state, strict=True)]
    return [new, *state]


def _factor(emit: Emitter, operands: Operands, number: fx.Node, size: fx.Node, optimizer: Adafactor) -> fx.Node:
    """What an update of this root mean square is multiplied with: a scalar."""
    rate = emit(aten.select.int, operands.rates, 0, operands.group)
    square = emit(aten.mul.Tensor, operands.parameter, operands.parameter)
    parameter = emit(aten.clamp_min.default, _root_mean(emit, square), optimizer.scale_floor)
    relative = emit(aten.minimum.default, rate, emit(aten.rsqrt.default, number))
    over = emit(aten.clamp_min.default, emit(aten.mul.Tensor, size, 1 / optimizer.update_bound), 1.0)
    return emit(aten.div.Tensor, emit(aten.mul.Tensor, parameter, relative), over)


def _averaged(emit: Emitter, old: fx.Node, new: Any, share: fx.Node) -> fx.Node:
    return emit(aten.add.Tensor, old, emit(aten.mul.Tensor, emit(aten.sub.Tensor, new, old), share))


def _root_mean(emit: Emitter, squares: fx.Node) -> fx.Node:
    """The root of the mean of all elements of [rows, elements], [elements] or []."""
    for _ in shape(squares):  # axis by axis: rows in parallel, and short sums
        squares = emit(aten.mean.dim, squares, [len(shape(squares)) - 1])
    return emit(aten.sqrt.default, squares)
