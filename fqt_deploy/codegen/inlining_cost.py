"""What it costs to compute a value again inside a kernel: its operations, its size, and how often it reads operands."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fqt_deploy.ops.aten.pointwise import Pointwise
from fqt_deploy.ops.lib.operand_reads import operand_reads
from fqt_deploy.ops.op import op_of
from fqt_deploy.ops.traits import Layout

aten = torch.ops.aten


def is_positional(node: fx.Node) -> bool:
    """Whether an element of the result reads the elements of the operands at its own index."""
    op = op_of(node)
    return op is not None and op.traits.layout is Layout.ELEMENTWISE


def operands_of(node: fx.Node) -> list[fx.Node]:
    """Operands of a node, repeated as often as they occur."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), lambda a: found.append(a))
    return found


def users_through_views(node: fx.Node) -> list[fx.Node]:
    """What reads a node, itself or a view of it."""
    found: list[fx.Node] = []
    for user in node.users:
        found.extend(users_through_views(user) if user.target is aten.view.default else [user])
    return found


def elements(node: fx.Node) -> int:
    """Number of elements of a value; 0 of several at once."""
    value: Any = node.meta["val"]
    return int(value.numel()) if isinstance(value, torch.Tensor) else 0


def value_bytes(node: fx.Node) -> int:
    """Size of a value in bytes; 0 of several at once."""
    value: Any = node.meta["val"]
    return int(value.numel()) * value.element_size() if isinstance(value, torch.Tensor) else 0


def operations(node: fx.Node) -> int:
    """Operations for one output element."""
    op = op_of(node)
    if op is None:
        return 0
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda a: a.meta["val"])
    cost = op.bound(args, kwargs).work(node.meta["val"])
    return max(0, round(cost.flops / max(elements(node), 1)))


def window_size(node: fx.Node) -> int:
    """How many elements of its operand one output element reads."""
    op = op_of(node)
    return 1 if op is None else op.bound(node.args, node.kwargs).window_size()


def textual_reads(node: fx.Node, position: int) -> int:
    """How often the expression of one element mentions the operand at ``position``."""
    op = op_of(node)
    if op is None:
        return 1
    if not issubclass(op, Pointwise):
        return op.bound(node.args, node.kwargs).mentions()
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda a: a.meta["val"])
    reads = operand_reads(op, args, kwargs, node.meta["val"])
    return reads[position] if position < len(reads) else 1
