"""Refusal of what has no fixed shape: a compiled step computes values, and shapes are those of the example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.core.diagnostics import FqtError

aten = torch.ops.aten

_MASK = "keep the shape: torch.where(mask, x, 0), and for a mean divide the sum by mask.sum()"
_INSTEAD: dict[Any, str] = {
    aten.nonzero.default: _MASK,
    aten.masked_select.default: _MASK,
    aten.index.Tensor: _MASK,
    aten.item.default: "compute with the tensor itself, without .item(), int() or float()",
    aten._local_scalar_dense.default: "compute with the tensor itself, without .item(), int() or float()",
    aten._unique2.default: "count with torch.nn.functional.one_hot(x, n).sum(0), which has a fixed shape",
    aten.unique_dim.default: "count with torch.nn.functional.one_hot(x, n).sum(0), which has a fixed shape",
    aten.repeat_interleave.Tensor: "repeat by a number that is known, or gather rows by an index of fixed shape",
}
"""What to write in place of operators whose result's shape, or Python number, depends on values."""


def refuse_dynamic_shapes(module: fx.GraphModule) -> None:
    """FQT104 at the first operator whose result has a shape, or is a number, that depends on values."""
    for node in module.graph.nodes:
        values = torch.utils._pytree.tree_leaves(node.meta.get("val"))
        if node.op != "call_function" or not any(map(_depends_on_values, values)):
            continue
        what = "the shape of a result" if isinstance(values[0], Tensor) else "a Python number"
        raise FqtError(
            f"{what} depends on values ({node.target})",
            code="FQT104",
            node=node,
            hint=_INSTEAD.get(node.target, "make shapes and numbers depend on shapes alone, and choose by torch.where"),
        )


def _depends_on_values(value: Any) -> bool:
    if isinstance(value, Tensor):
        return any(isinstance(extent, torch.SymInt) for extent in value.shape)
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))
