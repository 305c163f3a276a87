"""Which values of a graph cannot be negative, as far as the definitions of its operators tell."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.call import call_of
from fqt_deploy.ops.op import op_of


def is_non_negative(value: Any) -> bool:
    """Whether ``value``, a node, a number or None, has no element below 0 for all that definitions say; NaN aside."""
    if not isinstance(value, fx.Node):
        return not isinstance(value, (int, float)) or value >= 0
    computed = value.meta.get("val")
    if isinstance(computed, torch.Tensor) and computed.dtype == torch.bool:
        return True
    if value.target is operator.getitem:
        return call_of(value).index == 0 and is_non_negative(value.args[0])
    op = op_of(value)
    return op is not None and op.traits.sign.not_negative(call_of(value), is_non_negative)
