"""Labels with constants among them: padded, joined with constants, or written into a tensor of constants.

    %next = aten.constant_pad_nd(%y, [-1, 1], -100);  %index = aten.where(aten.ne(%next, -100), %next, 0)

A constant that is put among integers made of labels goes the way that some label goes. It is noted as if it were that
label, which occurs in every batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from fqt_deploy.capture.label_values import Fact, Index, Integer, Unknown, Within, constant_of, is_integer

aten = torch.ops.aten


def mixture_fact(node: fx.Node, facts: Mapping[Any, Fact]) -> Integer | None:
    """The facts known of the value of ``node``, whose op is in ``MIXTURES``; None if no integers made of labels."""
    parts = _parts(node)
    known = [facts[part] for part in parts if part in facts]
    if not is_integer(node):
        return None
    if not known:  # what is not followed goes where labels say
        return Unknown() if any(operand in facts for operand in node.all_input_nodes) else None
    constants = [constant_of(part) for part in parts if part not in facts]
    first, given = known[0], [constant for constant in constants if constant is not None]
    if len(given) < len(constants):
        return Unknown()
    if all(isinstance(fact, Within) for fact in known):
        lows, highs = zip(*((fact.low, fact.high) for fact in known if isinstance(fact, Within)), strict=True)
        return Within(min(*lows, *given, lows[0]), max(*highs, *given, highs[0]))
    if not isinstance(first, Index) or not all(_same(fact, first) for fact in known):
        return Unknown()
    always = frozenset[int]().union(*(fact.always for fact in known if isinstance(fact, Index)))
    labels = [first.label_of(constant) for constant in given]
    if None in labels:
        return Unknown()
    return replace(first, always=always | {label for label in labels if label is not None})


def _parts(node: fx.Node) -> list[Any]:
    """What the elements of the result are taken from: operands, and numbers."""
    args: Any = node.args
    if node.target is aten.cat.default:
        return list(args[0])
    if node.target is aten.constant_pad_nd.default:
        return [args[0], args[2] if len(args) > 2 else 0] if any(width > 0 for width in args[1]) else [args[0]]
    if node.target in (aten.scatter.src, aten.scatter.value):
        return [args[0], args[3]]
    if node.target is aten.index_put.default:  # sums of labels are not followed: their own node is no constant
        return [args[0], args[2], *([node] if len(args) > 3 and args[3] else [])]
    return list(args[:2])


def _same(fact: Fact, first: Index) -> bool:
    return isinstance(fact, Index) and replace(fact, always=first.always) == first
