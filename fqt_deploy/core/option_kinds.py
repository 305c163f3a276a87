"""Kinds of option values: what a field of a given type takes, how text becomes it, and how both are put in words."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin


def _as_it_is(text: str) -> Any:
    return text


@dataclass(frozen=True)
class Kind:
    """The kind of an option's values.

    Attributes:
        metavar: stands for a value in the help of a command.
        wanted: the values in words, after "it must be".
        accept: returns a value as the field holds it; raises ``ValueError`` if it is none.
        read: returns what text from the command line spells, or the text itself, which ``accept`` then refuses.
        choices: the values as text, where they are few.
        is_flag: the command line gives it without a value.
        is_path: it names a file or a folder.
        repeatable: the command line may give it several times.
    """

    metavar: str
    wanted: str
    accept: Callable[[Any], Any]
    read: Callable[[str], Any] = _as_it_is
    choices: tuple[str, ...] = ()
    is_flag: bool = False
    is_path: bool = False
    repeatable: bool = False


def choice(values: tuple[Any, ...]) -> Kind:
    """The kind of an option with a few values; the default comes first."""
    spelled = {str(value): value for value in values}

    def accept(value: Any) -> Any:
        if not any(type(value) is type(known) and value == known for known in values):
            raise ValueError
        return value

    names = tuple(spelled)
    return Kind(f"[{'|'.join(names)}]", f"one of {', '.join(names)}", accept, lambda t: spelled.get(t, t), names)


def flag() -> Kind:
    """The kind of an option that is on or off."""

    def accept(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Kind("", "True or False", accept, is_flag=True)


def number(of: type[int] | type[float], minimum: float | None = None, below: float | None = None) -> Kind:
    """A finite number, at least ``minimum`` and less than ``below``; an int may stand for a float."""

    def accept(value: Any) -> Any:
        fits = isinstance(value, int if of is int else int | float) and not isinstance(value, bool)
        if not fits or not math.isfinite(value):
            raise ValueError
        if (minimum is not None and value < minimum) or (below is not None and value >= below):
            raise ValueError
        return value

    def read(text: str) -> Any:
        try:
            return of(text)
        except ValueError:
            return text

    noun, metavar = ("an integer", "INTEGER") if of is int else ("a number", "NUMBER")
    return Kind(metavar, f"{noun}{_range(minimum, below)}", accept, read)


def _range(minimum: float | None, below: float | None) -> str:
    if minimum is None:
        return ""
    return f" of at least {minimum}" if below is None else f" in [{minimum}, {'2^63' if below == 2**63 else below})"


def string(*, may_be_empty: bool = False) -> Kind:
    """Any string that is not empty, or any at all."""

    def accept(value: Any) -> str:
        if not isinstance(value, str) or not (value or may_be_empty):
            raise ValueError
        return value

    return Kind("TEXT", "a string" if may_be_empty else "a string that is not empty", accept)


def path() -> Kind:
    """A path, as ``Path`` or as a string."""

    def accept(value: Any) -> Path:
        if not isinstance(value, str | Path) or not str(value):
            raise ValueError
        return Path(value)

    return Kind("PATH", "a path", accept, is_path=True)


def several(of: Kind) -> Kind:
    """Any number of values of kind ``of``, or one by itself; the command line repeats the option."""

    def accept(value: Any) -> tuple[Any, ...]:
        return tuple(of.accept(item) for item in (value if isinstance(value, tuple | list) else (value,)))

    return Kind(of.metavar, f"{of.wanted}, or a list of such", accept, of.read, of.choices, repeatable=True)


def listed(of: Kind) -> Kind:
    """Any number of values of kind ``of``, or one by itself; on the command line there are commas between them."""

    def accept(value: Any) -> tuple[Any, ...]:
        return tuple(of.accept(item) for item in (value if isinstance(value, tuple | list) else (value,)))

    def read(text: str) -> Any:
        return tuple(of.read(part.strip()) for part in text.split(","))

    return Kind("LIST", f"{of.wanted}, or several with commas between them", accept, read)


def pair(of: Kind) -> Kind:
    """Two values of kind ``of``; on the command line there is a comma between them."""

    def accept(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise ValueError
        return tuple(of.accept(item) for item in value)

    def read(text: str) -> Any:
        return tuple(of.read(part.strip()) for part in text.split(","))

    return Kind(f"{of.metavar},{of.metavar}", f"two values, each {of.wanted}", accept, read)


def kind_of(annotation: Any, minimum: float | None = None, below: float | None = None) -> Kind:
    """Return the kind of values of a field.

    Args:
        annotation: the field's type: a plain type, ``Literal``, ``tuple[T, ...]`` or ``tuple[T, T]``, or with ``None``.
        minimum: the least number; None for any.
        below: numbers are less than this; None for any.

    Raises:
        TypeError: for a type that no kind stands for; the declaration then names its kind.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if is_open(annotation):
        (annotation,) = [argument for argument in arguments if argument is not type(None)]
        return kind_of(annotation, minimum, below)
    if origin is Literal:
        return choice(arguments)
    if origin is tuple and len(arguments) == 2:
        of = kind_of(arguments[0], minimum, below)
        return several(of) if arguments[1] is ... else pair(of)
    plain: dict[Any, Callable[[], Kind]] = {
        bool: flag,
        int: lambda: number(int, minimum, below),
        float: lambda: number(float, minimum, below),
        str: string,
        Path: path,
    }
    if annotation not in plain:
        raise TypeError(f"no kind of option value stands for {annotation}")
    return plain[annotation]()


def is_open(annotation: Any) -> bool:
    """Return whether a field of this type may be None, which leaves the choice to the compiler."""
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)
