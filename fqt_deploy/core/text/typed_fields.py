"""The fields of a dataclass as text, ``bits=3 grid=zero``: of a layer's record, and of a pass given by name."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from fqt_deploy.core.text.scanner import NAME, NUMBER, Scanner, nearest, quoted

_INTEGER = re.compile(r"[-+]?\d+")
_NONE = re.compile(r"None\b")


def fields_text(value: Any, *, but: Iterable[str] = ()) -> str:
    """The fields of the dataclass ``value`` that have another value than their default, without those of ``but``."""
    shown = [f for f in dataclasses.fields(value) if f.name not in but and getattr(value, f.name) != _default(f)]
    return " ".join(f"{f.name}={field_text(getattr(value, f.name))}" for f in shown)


def field_text(value: Any) -> str:
    """The value of a field as ``parse_field`` reads it."""
    if dataclasses.is_dataclass(value):
        fields = fields_text(value)
        return type(value).__name__.lower() + (f"{{{fields}}}" if fields else "")
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, tuple):
        return "[" + " ".join(field_text(item) for item in value) + "]"
    if isinstance(value, str):
        return quoted(value) if value != "None" else json.dumps(value)
    return repr(value)


def parse_fields(
    scanner: Scanner, owner: type, what: str, *, end: str, given: Mapping[str, Any] | None = None, bare: bool = False
) -> Any:
    """An ``owner`` of what the text gives as ``key=value``.

    Args:
        scanner: the scanner of the text to read.
        owner: a dataclass.
        what: is read, for errors.
        end: what ends the list: a closing brace, or a line feed.
        given: fields that are known already.
        bare: whether the text gives nothing, not even an end.

    Raises:
        FqtError: for a field that there is not, or that is missing, and a value that is not of its type.
    """
    start = scanner.position
    hints = get_type_hints(owner, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(owner) if f.init}
    values = dict(given or {})
    while not (bare or (scanner.at_end_of_line() if end == "\n" else scanner.accept(end))):
        at = scanner.position
        name = scanner.expect(NAME, "a key" if end == "\n" else f"{end!r} or an option")
        if name not in fields:
            raise scanner.error(f"{what} has no {name!r}", at=at, hint=nearest(name, fields))
        if name in values:
            raise scanner.error(f"{name} is given twice", at=at)
        scanner.expect("=", "'='")
        values[name] = parse_field(scanner, hints[name], name)
        scanner.accept(",")
        scanner.skip_blanks()
    missing = [n for n, f in fields.items() if n not in values and _default(f) is dataclasses.MISSING]
    if missing:
        raise scanner.error(f"{what} needs {missing[0]}", at=start)
    return owner(**values)


def parse_field(scanner: Scanner, kind: Any, name: str) -> Any:
    """A value of type ``kind``: a number, True or False, a name, one of several, a list, or another dataclass."""
    scanner.skip_blanks()
    at = scanner.position
    choices = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if type(None) in choices and scanner.accept(_NONE) is not None:
        return None
    choices = tuple(choice for choice in choices if choice is not type(None))
    if all(dataclasses.is_dataclass(choice) for choice in choices):
        return _parse_dataclass(scanner, choices, name, at)
    (kind,) = choices
    allowed = allowed_values(kind)
    if allowed:
        found = scanner.name(f"a value of {name}: {', '.join(allowed)}")
        if found not in allowed:
            raise scanner.error(f"{name} is {found!r}; it must be one of {', '.join(allowed)}", at=at)
        return allowed[found]
    if get_origin(kind) is tuple:
        return _parse_tuple(scanner, get_args(kind), name)
    if kind is str:
        return scanner.name(f"a name for {name}")
    assert kind in (int, float), f"a field of type {kind} cannot be read"
    number = scanner.accept(NUMBER)
    if number is None or (kind is int and not _INTEGER.fullmatch(number)):
        raise scanner.error(f"{name} must be {'an integer' if kind is int else 'a number'}", at=at)
    return kind(number)


def allowed_values(kind: Any) -> dict[str, Any]:
    """The values of a type that has few of them, by their spelling; empty for all other types.

    ``Annotated[int, (1, 2, 4)]`` is an integer that is one of these.
    """
    if get_origin(kind) is Literal:
        return {str(value): value for value in get_args(kind)}
    if get_origin(kind) is Annotated:
        return {str(value): value for value in kind.__metadata__[0]}
    if kind is bool:
        return {"True": True, "False": False}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return {member.name.lower(): member for member in kind}
    return {}


def kind_text(kind: Any) -> str:
    """The values that a field of type ``kind`` can have, in a few words."""
    if allowed := allowed_values(kind):
        return "|".join(allowed)
    if get_origin(kind) is tuple:
        return f"[{kind_text(get_args(kind)[0])} ...]"
    if get_origin(kind) in (Union, types.UnionType):
        return "|".join(kind_text(choice) for choice in get_args(kind))
    if dataclasses.is_dataclass(kind):
        return "|".join(known.__name__.lower() for known in _concrete(kind))
    return {int: "integer", float: "number", str: "name"}.get(kind, "None")


def _parse_tuple(scanner: Scanner, kinds: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    scanner.skip_blanks()
    at = scanner.position
    scanner.expect("[", f"'[' and the values of {name}")
    endless = kinds[-1] is Ellipsis
    items: list[Any] = []
    while scanner.accept("]") is None:
        kind = kinds[0] if endless else kinds[min(len(items), len(kinds) - 1)]
        items.append(parse_field(scanner, kind, name))
        scanner.accept(",")
    if not endless and len(items) != len(kinds):
        raise scanner.error(f"{name} has {len(kinds)} values, {len(items)} are given", at=at)
    return tuple(items)


def _parse_dataclass(scanner: Scanner, kinds: Iterable[Any], name: str, at: int) -> Any:
    """The object of one of ``kinds`` or a class derived from one, written as ``sgd{lr=0.1}``."""
    known = {each.__name__.lower(): each for kind in kinds for each in _concrete(kind)}
    found = scanner.expect(NAME, f"a value of {name}: {', '.join(known)}")
    if found not in known:
        raise scanner.unknown(name, found, known, at)
    return parse_fields(scanner, known[found], found, end="}", bare=scanner.accept("{") is None)


def _concrete(kind: Any) -> list[Any]:
    """All classes derived from ``kind``, which says what they have in common; itself if there are none."""
    below = kind.__subclasses__()
    return [*below, *(each for child in below for each in _concrete(child) if each is not child)] or [kind]


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
