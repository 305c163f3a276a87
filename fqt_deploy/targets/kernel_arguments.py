"""The constant arguments of a kernel's op, by the names in the op's schema: what hand-written kernels need."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch._ops import OpOverload
from tvm import tirx

ARGUMENTS = "fqt.arguments"
"""Attribute of a kernel's function that holds the op's arguments; absent where something was inlined into its loop
nests.
"""

_NOTHING: Mapping[str, Any] = {}


def encoded(op: OpOverload, arguments: Sequence[Any], keywords: Mapping[str, Any] = _NOTHING) -> str:
    """The constants among the arguments of a call as a JSON object, in the order of the op's schema.

    Args:
        op: whose schema names the arguments, and says what those are that are not given.
        arguments: the arguments of the call, by position. Tensors, nodes and whatever else is no constant are left out.
        keywords: the keywords of the call, by name.
    """
    schema = op._schema.arguments
    given = {**dict(zip((argument.name for argument in schema), arguments, strict=False)), **keywords}
    values = {a.name: given.get(a.name, a.default_value) for a in schema if a.name in given or a.has_default_value()}
    return json.dumps({name: value for name, value in values.items() if _is_constant(value)})


def arguments_of(function: tirx.PrimFunc) -> dict[str, Any] | None:
    """The arguments that ``encoded`` wrote into the kernel ``function``; None if something was inlined into its op."""
    text = function.attrs.get(ARGUMENTS)
    if text is None:
        return None
    found = json.loads(str(text))
    assert isinstance(found, dict), f"{ARGUMENTS} of {function.attrs['fqt.op']} are not named: {text}"
    return found


def _is_constant(value: Any) -> bool:
    """Whether ``value`` is None, a number, a text, or a list of such."""
    if isinstance(value, (list, tuple)):
        return all(_is_constant(item) for item in value)
    return value is None or isinstance(value, (int, float, str))
