"""Which values of a graph cannot be negative, as far as its operators tell."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.call import call_of
from fqt_deploy.ops.aten.aten_op import moves_elements

aten = torch.ops.aten
fqt = torch.ops.fqt

ALWAYS = frozenset(
    (
        aten.relu.default, aten.sigmoid.default, aten.hardsigmoid.default, aten.abs.default, aten.exp.default,
        aten._softmax.default, aten.sqrt.default, aten.rsqrt.default,
    )
)  # fmt: skip
"""Operators whose results are never negative."""
KEEP = frozenset(
    (
        aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default, aten.minimum.default,
        aten.mean.dim, aten.mean.default, aten.sum.dim_IntList, aten.amax.default, aten.amin.default,
        aten.where.self, aten.cat.default, aten.constant_pad_nd.default, aten.clone.default, aten._to_copy.default,
        fqt.max_pool2d.default, fqt.avg_pool2d.default, fqt.window_max.default, fqt.window_mean.default,
        fqt.gather_rows.default, fqt.dropout_mask.default,
    )
)  # fmt: skip
"""Operators whose results are not negative where no operand is."""
_LOWER_BOUNDS = {aten.clamp.default: "min", aten.clamp_min.default: "min", aten.hardtanh.default: "min_val"}


def is_non_negative(node: Any) -> bool:
    """Whether the operators that compute ``node``, a node or a constant, leave no value below 0; NaN aside."""
    if not isinstance(node, fx.Node):
        return not isinstance(node, (int, float)) or node >= 0
    if node.target in ALWAYS or _is_square(node):
        return True
    if node.target in _LOWER_BOUNDS:
        bound = getattr(call_of(node), _LOWER_BOUNDS[node.target])
        return bound is not None and bound >= 0
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor) and value.dtype == torch.bool:
        return True
    if node.target is operator.getitem:
        return call_of(node).index == 0 and is_non_negative(node.args[0])
    if node.op == "call_function" and (node.target in KEEP or moves_elements(node)):
        constants = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, (int, float))]
        return all(map(is_non_negative, (*node.all_input_nodes, *_factors(node, constants))))
    return False


def _is_square(node: fx.Node) -> bool:
    """Whether ``node`` is the product of a value with itself, or an even power."""
    if node.target is aten.mul.Tensor:
        return node.args[0] is node.args[1]
    return node.target is aten.pow.Tensor_Scalar and float(node.args[1]) % 2 == 0  # type: ignore[arg-type]


def _factors(node: fx.Node, constants: list[Any]) -> list[Any]:
    """The constants of a sum, a product or a padding; those of other operators are axes and sizes."""
    scalars = (aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.constant_pad_nd.default)
    return constants if node.target in scalars else []
