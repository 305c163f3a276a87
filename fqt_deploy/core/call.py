"""Named access to what a node calls: ``call_of(node).alpha`` instead of ``node.args[3]``."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import fx

_ITEM = ("source", "index")
"""Names of the operands of ``getitem``, which has no schema."""


class Call:
    """Operands and attributes of one node by the names of its op's schema; what the call leaves out has its default.

    Attributes:
        node: the node that was read.
    """

    __slots__ = ("_values", "node")

    def __init__(self, node: fx.Node) -> None:
        """Read ``node``, which must be a ``call_function``; ``TypeError`` if it is none or does not fit the schema."""
        self.node = node
        self._values = arguments_of(node)

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            known = ", ".join(self._values)
            raise AttributeError(f"{self.node.target} has no argument {name!r}; it has {known}") from None

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def values(self) -> Mapping[str, Any]:
        """All operands and attributes by name, in the order of the schema."""
        return self._values


def call_of(node: fx.Node) -> Call:
    """The call that ``node`` makes."""
    return Call(node)


def source_of(node: fx.Node) -> fx.Node:
    """The first operand of ``node``, which must be a tensor."""
    source = node.args[0]
    if not isinstance(source, fx.Node):
        raise TypeError(f"{node.target} does not take a tensor first")
    return source


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Operands and attributes of ``node`` by name, defaults included."""
    return bind(node.target, node.args, node.kwargs)


def bind(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of ``target`` by name, defaults included; ``TypeError`` if they do not fit its schema."""
    names, defaults = _schema(target)
    if len(args) > len(names):
        raise TypeError(f"{target} takes {len(names)} arguments, not {len(args)}")
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    missing = [name for name in names if name not in given and name not in defaults]
    unknown = [name for name in given if name not in names]
    if missing or unknown:
        raise TypeError(f"{target}: missing {missing}, unknown {unknown}")
    return {name: given[name] if name in given else defaults[name] for name in names}


def update(node: fx.Node, /, **changes: Any) -> None:
    """Set arguments of ``node`` by name, in place; its shape is not propagated."""
    node.args, node.kwargs = changed(node, changes)


def changed(node: fx.Node, changes: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of ``node``'s call with ``changes``; the others keep their spelling.

    Args:
        node: a call.
        changes: new values by name; ``TypeError`` for a name that the schema has not.
    """
    names, defaults = _schema(node.target)
    args, kwargs = list(node.args), dict(node.kwargs)
    for name, value in changes.items():
        if name not in names:
            raise TypeError(f"{node.target} has no argument {name!r}; it has {', '.join(names)}")
        position = names.index(name)
        if name in kwargs or name in _keyword_only(node.target):
            kwargs[name] = value
            continue
        args += [defaults[missing] for missing in names[len(args) : position + 1]]
        args[position] = value
    return tuple(args), kwargs


@cache
def _schema(target: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names of an operator's arguments in order, and the defaults of those that have one."""
    if target is operator.getitem:
        return _ITEM, {}
    schema = getattr(target, "_schema", None)
    if schema is None:
        raise TypeError(f"{target} is no operator with a schema")
    names = tuple(argument.name for argument in schema.arguments)
    return names, {a.name: a.default_value for a in schema.arguments if a.has_default_value()}


@cache
def _keyword_only(target: Any) -> frozenset[str]:
    if target is operator.getitem:
        return frozenset()
    return frozenset(argument.name for argument in target._schema.arguments if argument.kwarg_only)
