"""The arguments of an operator's call by the names in its schema."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

UNNAMED_OPERANDS = 3
"""A call of at most so many tensors shows them without their names; of more, all but the first argument have names."""


def shown_arguments(node: fx.Node) -> list[tuple[str | None, Any]]:
    """Arguments to show of a call: the first argument and tensors by place, attributes by name; defaults are left out.

    Of what is no operator, and is refused before anything is made of it, all is shown as it was called.
    """
    if not isinstance(node.target, torch._ops.OpOverload):
        return [*((None, value) for value in node.args), *node.kwargs.items()]
    arguments = _schema(node.target).arguments
    has_defaults = node.target.namespace != "prims"  # whose shape rules want all that the schema lets be left out
    given = dict(zip((a.name for a in arguments), node.args, strict=False)) | node.kwargs
    tensors = sum("Tensor" in str(a.type) for a in arguments)
    shown: list[tuple[str | None, Any]] = []
    by_place = True
    for place, argument in enumerate(arguments):
        if argument.name not in given or (has_defaults and _is_default(argument, given[argument.name])):
            by_place = False
            continue
        operand = "Tensor" in str(argument.type) or argument.name == "other"  # which may be a number, too
        unnamed = place == 0 or (operand and tensors <= UNNAMED_OPERANDS)
        by_place = by_place and unnamed and not argument.kwarg_only
        shown.append((None if by_place else argument.name, given[argument.name]))
    return shown


def bound_arguments(target: Any, places: list[Any], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The ``args`` and ``kwargs`` of a node from what a text gives of its call.

    All arguments up to the last one that is given have a place in ``args``, those in between their defaults. Arguments
    that the schema has by name alone are in ``kwargs``.

    Raises:
        ValueError: for an argument that is unknown, missing, or given twice.
    """
    schema = _schema(target)
    positional = [a for a in schema.arguments if not a.kwarg_only]
    if len(places) > len(positional):
        raise ValueError(f"{target} takes {len(positional)} arguments by place, {len(places)} are given")
    given = dict(zip((a.name for a in positional), places, strict=False))
    known = [a.name for a in schema.arguments]
    for name, value in named.items():
        if name not in known:
            raise ValueError(f"{target} has no argument {name!r}; it has {', '.join(known)}")
        if name in given:
            raise ValueError(f"{target} is given its argument {name!r} twice")
        given[name] = value
    missing = [a.name for a in schema.arguments if a.name not in given and not a.has_default_value()]
    if missing:
        raise ValueError(f"{target} is not given its argument {missing[0]!r}")
    last = max((i for i, a in enumerate(positional) if a.name in given), default=-1)
    args = tuple(given.get(a.name, a.default_value) for a in positional[: last + 1])
    return args, {a.name: given[a.name] for a in schema.arguments if a.kwarg_only and a.name in given}


def _schema(target: Any) -> Any:
    assert isinstance(target, torch._ops.OpOverload), target
    return target._schema


def _is_default(argument: Any, value: Any) -> bool:
    if not argument.has_default_value() or isinstance(value, fx.Node):
        return False
    default = argument.default_value
    if isinstance(value, (list, tuple)):
        return isinstance(default, (list, tuple)) and list(value) == list(default)
    return type(value) is type(default) and bool(value == default)
