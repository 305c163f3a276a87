"""ATen ops that say the same in several ways: no result of theirs is computed."""

from __future__ import annotations

import torch

aten = torch.ops.aten
prims = torch.ops.prims

ALIASES = (aten.alias.default, aten.detach.default, aten.clone.default, aten.lift_fresh_copy.default)
"""The operand itself, or a copy of it."""

RESHAPES = (
    aten.view.default, aten.reshape.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default, prims.squeeze.default,
)  # fmt: skip
"""All elements of the operand, in order, in another shape."""

IN_ORDER = (*ALIASES, *RESHAPES, aten._to_copy.default)
"""All elements of the operand, in order."""

ELEMENTS = (
    *IN_ORDER, aten.expand.default, aten.permute.default, aten.transpose.int, aten.slice.Tensor, aten.select.int,
    aten.flip.default, aten.repeat.default,
)  # fmt: skip
"""Some or all elements of the operand, and no others."""

MIXTURES = (
    aten.constant_pad_nd.default, aten.cat.default, aten.slice_scatter.default, aten.select_scatter.default,
    aten.scatter.src, aten.scatter.value, aten.index_put.default,
)  # fmt: skip
"""Elements of several operands, or constants among those of one."""

SIZED = (aten.view.default, aten.expand.default)
"""Ops with their result's shape among their arguments."""

NOT = (aten.logical_not.default, aten.bitwise_not.default)
AND = (aten.logical_and.default, aten.bitwise_and.Tensor)
OR = (aten.logical_or.default, aten.bitwise_or.Tensor)
"""Of conditions."""

COMPARISONS = {
    getattr(getattr(aten, name), kind): name
    for name in ("eq", "ne", "lt", "le", "gt", "ge")
    for kind in ("Scalar", "Tensor")
}
"""The name of each comparison, whatever it compares with."""
