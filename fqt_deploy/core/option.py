"""Options, declared once: a dataclass field says all there is to say of one.

::

    @dataclass(frozen=True)
    class CompileOptions:
        remat: Literal["off", "auto"] = option("off", "Keep ... (off), or compute it again (auto).", section=MEMORY)

        def __post_init__(self) -> None:
            check_options(self)

The field is the setting in Python and in a model file (``remat="auto"``), the flag of the command (``--remat auto``, by
``command_line.py``), a line of its help and of ``docs/options.md`` (``tools/option_tables.py``), and, where it changes
computed numbers, an entry of the manifest. Its type says which values it takes; others are an FQT202 error.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.option_kinds import Kind, is_open, kind_of

_KEY = "option"

DATA = "Data"
TRAINING = "Training"
LOGS = "Logs"
WRITING = "Input and output"
TARGET = "Target"
GRADIENTS = "Gradients"
LAYERS = "Layers"
OPTIMIZER = "Optimizer"
RESOURCES = "Memory and speed"
CHECKS = "Checks and insight"
SECTIONS = (DATA, TRAINING, WRITING, LOGS, TARGET, GRADIENTS, LAYERS, OPTIMIZER, RESOURCES, CHECKS)
"""The headings that options stand under, in their order."""


@dataclass(frozen=True)
class OptionText:
    """The things that a declaration says of an option beside its name, type and default.

    Attributes:
        text: whole sentences for the help and ``docs/options.md``; the default value comes first in them.
        section: heading that the option stands under, one of ``SECTIONS``.
        default: the default in words, where it is not one value.
        metavar: stands for a value in the help, in place of the kind's own.
        flags: spellings on the command line; none for ``--`` and the name with ``-`` for ``_``, for yes or no
            with ``--no-`` too.
        in_manifest: the option changes computed numbers, and the manifest records it.
        recorded_as: the property that the manifest takes the value from, where the field may leave it open.
        kind: kind of the values, where the field's type does not tell.
        alone: the value where the flag stands without one; None where it must have one.
        minimum: the least number.
        below: numbers are less than this.
    """

    text: str
    section: str
    default: str | None = None
    metavar: str | None = None
    flags: tuple[str, ...] = ()
    in_manifest: bool = False
    recorded_as: str | None = None
    kind: Kind | None = None
    alone: str | None = None
    minimum: float | None = None
    below: float | None = None


@dataclass(frozen=True)
class Option:
    """One option of a class, with what its declaration leaves to the field.

    Attributes:
        name: name of the field, and of the setting.
        told: the texts of the declaration.
        kind: kind of the values.
        is_open: the field may be None: the compiler chooses.
        default: default of the field.
        owners: the alternatives of a choice that have the option, with the default of each; none for an option that
            belongs to no alternative.
        limited: some alternatives do not have it.
    """

    name: str
    told: OptionText
    kind: Kind
    is_open: bool
    default: Any
    owners: Mapping[str, Any] = field(default_factory=dict)
    limited: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """The spellings on the command line."""
        return self.told.flags or ("--" + self.name.replace("_", "-"),)

    @property
    def metavar(self) -> str:
        """The word that stands for a value in the help."""
        return self.told.metavar or self.kind.metavar

    @property
    def default_text(self) -> str:
        """The default in words: one, or one for each default that owners have; empty where it says nothing."""
        if self.told.default is not None:
            return self.told.default
        first, *_ = [*self.owners.values(), self.default]
        others = [f"{_shown(value)} for {name}" for name, value in self.owners.items() if value != first]
        return "; ".join(text for text in (_shown(first), *others) if text)

    def accept(self, value: Any) -> Any:
        """Return ``value`` as the field holds it; raise FQT202 with what is wanted if it is none."""
        if value is None and self.is_open:
            return None
        try:
            return self.kind.accept(value)
        except ValueError:
            message = f"{self.name} is {value!r}; it must be {self.kind.wanted}"
            raise FqtError(message, code="FQT202") from None


def option(default: Any, text: str, *, section: str, default_text: str | None = None, **told: Any) -> Any:
    """Declare an option: what stands behind a dataclass field's ``=``.

    Args:
        default: value of the field that nobody gives; None, where the type has it, leaves the choice to the compiler.
        text: whole sentences; the default value comes first in them.
        section: heading to stand under, one of ``SECTIONS``.
        default_text: the default in words, where ``default`` does not tell.
        **told: the other attributes of ``OptionText``.
    """
    return field(default=default, metadata={_KEY: OptionText(text, section, default_text, **told)})


def options_in(cls: type) -> Mapping[str, Option]:
    """The options that ``cls`` and its bases declare, by name, in order.

    A subclass that gives a field another default leaves its declaration as it is.
    """
    return _options_in(cls)


@cache
def _options_in(cls: Any) -> Mapping[str, Option]:
    hints = typing.get_type_hints(cls)
    found: dict[str, Option] = {}
    for each in dataclasses.fields(cls):
        told = next((t for base in cls.__mro__ if (t := _declaration(base, each.name)) is not None), None)
        if told is not None:
            kind = told.kind or kind_of(hints[each.name], told.minimum, told.below)
            found[each.name] = Option(each.name, told, kind, is_open(hints[each.name]), each.default)
    return MappingProxyType(found)


def check_options(instance: Any) -> None:
    """Bring every option of ``instance`` into the form that its kind holds; FQT202 for a value that is none."""
    for name, declared in options_in(type(instance)).items():
        object.__setattr__(instance, name, declared.accept(getattr(instance, name)))


def recorded_options(instance: Any) -> dict[str, Any]:
    """The options of ``instance`` that change computed numbers, as JSON holds them."""
    values = {
        name: getattr(instance, declared.told.recorded_as or name)
        for name, declared in options_in(type(instance)).items()
        if declared.told.in_manifest
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def merge_owners(alternatives: Mapping[str, type]) -> dict[str, Option]:
    """The options of all ``alternatives`` of one choice by name, each with those that have it as its owners."""
    merged: dict[str, Option] = {}
    for alternative, cls in alternatives.items():
        for name, declared in options_in(cls).items():
            known = merged.get(name, declared)
            owners = {**known.owners, alternative: declared.default}
            merged[name] = dataclasses.replace(known, owners=owners)
    for name, declared in merged.items():
        merged[name] = dataclasses.replace(declared, limited=len(declared.owners) < len(alternatives))
    return dict(sorted(merged.items(), key=lambda item: item[1].limited))  # those that all have come first


def by_section(options: Iterable[Option]) -> dict[str, list[Option]]:
    """The ``options`` under their headings, in the order of ``SECTIONS``."""
    found: dict[str, list[Option]] = {heading: [] for heading in SECTIONS}
    for declared in options:
        found[declared.told.section].append(declared)
    return {heading: there for heading, there in found.items() if there}


def _declaration(cls: type, name: str) -> OptionText | None:
    declared = getattr(cls, "__dataclass_fields__", {}).get(name)
    return declared.metadata.get(_KEY) if declared is not None else None


def _shown(value: Any) -> str:
    if value is None or value is False or value == ():
        return ""
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
