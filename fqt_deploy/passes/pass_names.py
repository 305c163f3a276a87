"""Passes by name: ``normalize-views,insert-scq{bits=3 grid=zero}`` as a tuple of passes, and back.

A pass is known by its class's ``name``, its options are the fields of the class: nothing is listed here.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Iterable
from typing import get_type_hints

import fqt_deploy.passes
from fqt_deploy.core.text.scanner import NAME, Scanner
from fqt_deploy.core.text.typed_fields import field_text, fields_text, kind_text, parse_fields
from fqt_deploy.passes.pass_base import Pass

CODE = "FQT209"


@functools.cache
def pass_classes() -> dict[str, type[Pass]]:
    """Every pass in this folder by its name."""
    modules = [
        importlib.import_module(f"{__package__}.{m.name}") for m in pkgutil.iter_modules(fqt_deploy.passes.__path__)
    ]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return {cls.name: cls for cls in found if issubclass(cls, Pass) and cls is not Pass}


def parse_passes(text: str) -> tuple[Pass, ...]:
    """The passes that ``text`` names, in order, separated by commas; none for an empty text.

    Raises:
        FqtError: FQT206 for a name that no pass has, FQT209 for an option that a pass does not have, a value that the
            option cannot have, or text of another form.
    """
    scanner = Scanner(text, code=CODE)
    passes: list[Pass] = []
    while not scanner.at_end_of_line():
        if passes:
            scanner.expect(",", "',' and another pass")
            scanner.skip_blanks()
        passes.append(_parse_pass(scanner))
    if scanner.position < len(text):
        raise scanner.error("the passes are given in one line")
    return tuple(passes)


def passes_text(passes: Iterable[Pass]) -> str:
    """``passes`` as ``parse_passes`` reads them, without options that have their default."""
    options = [(each.name, fields_text(each)) for each in passes]
    return ",".join(f"{name}{{{given}}}" if given else name for name, given in options)


def options_text(kind: type[Pass]) -> str:
    """The options of a pass with their default and the values that they can have; empty if it has none."""
    hints = get_type_hints(kind, include_extras=True)
    options = [
        (field.name, field_text(field.default), kind_text(hints[field.name])) for field in dataclasses.fields(kind)
    ]
    return ", ".join(f"{name}={default} ({values})" for name, default, values in options)


def _parse_pass(scanner: Scanner) -> Pass:
    at = scanner.position
    name = scanner.expect(NAME, "the name of a pass")
    if name not in pass_classes():
        raise scanner.unknown("pass", name, pass_classes(), at, code="FQT206")
    found = parse_fields(scanner, pass_classes()[name], name, end="}", bare=scanner.accept("{") is None)
    assert isinstance(found, Pass)
    return found
