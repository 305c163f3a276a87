"""Declared options (``core/option.py``) as flags of a click command, under their headings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from fqt_deploy.core.option import Option, by_section
from fqt_deploy.core.option_kinds import Kind

OTHERS = "Other"
"""Heading of the flags that no declaration stands for: ``--version``, ``--help`` and those that only list something."""


class SectionedCommand(click.Command):
    """A command whose help shows its options under the headings that they declare.

    Attributes:
        sections: heading by name of the parameter; the others come last.
    """

    sections: Mapping[str, str] = {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each heading with its options."""
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in self.sections.values()}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if row is not None:
                rows.setdefault(self.sections.get(parameter.name or "", OTHERS), []).append(row)
        for heading, options in rows.items():
            with formatter.section(heading):
                formatter.write_dl(options, col_max=26)


class _Switch(click.Option):
    """A flag that can be given as no, too: the command line wins over a yes of the model file."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The line of the help, which shows both spellings as one."""
        record = super().get_help_record(ctx)
        return (self.opts[0].replace("--", "--[no-]", 1), record[1]) if record is not None else None


def with_flags(options: Iterable[Option]) -> Callable[[click.Command], click.Command]:
    """Return a decorator that gives a ``SectionedCommand`` a flag for each of ``options``.

    The command's function takes them as keyword arguments; ``given_options`` makes values of these.
    """
    sections = by_section(options)

    def decorate(command: click.Command) -> click.Command:
        assert isinstance(command, SectionedCommand)
        command.params = [
            *(p for p in command.params if isinstance(p, click.Argument)),
            *(_flag(declared) for section in sections.values() for declared in section),
            *(p for p in command.params if not isinstance(p, click.Argument)),
        ]
        command.sections = {declared.name: heading for heading, found in sections.items() for declared in found}
        return command

    return decorate


def given_options(options: Iterable[Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """The options among ``values`` that a person gave on the command line, read as their kinds spell them."""
    given: dict[str, Any] = {}
    for declared in options:
        value = values[declared.name]
        if value is None or value == ():
            continue
        if declared.kind.repeatable:
            given[declared.name] = [declared.kind.read(text) for text in value]
        else:
            given[declared.name] = value if declared.kind.is_flag else declared.kind.read(value)
    return given


def help_text(declared: Option) -> str:
    """The line of the help: for which alternatives, what it does, and the default."""
    text = declared.told.text
    if declared.limited:
        text = f"{', '.join(declared.owners)}: {text}"
    return f"{text}  [default: {declared.default_text}]" if declared.default_text else text


def _flag(declared: Option) -> click.Option:
    names, kind = list(declared.flags), declared.kind
    if kind.is_flag and not declared.told.flags:
        both = f"{names[0]}/{names[0].replace('--', '--no-', 1)}"
        return _Switch([declared.name, both], default=None, help=help_text(declared))
    if kind.is_flag:
        return click.Option([declared.name, *names], is_flag=True, default=None, help=help_text(declared))
    settings: dict[str, Any] = {"type": click.Path()} if kind.is_path else {"shell_complete": _completion(kind)}
    if declared.told.alone is not None:
        settings |= {"is_flag": False, "flag_value": declared.told.alone}
    return click.Option(
        [declared.name, *names],
        multiple=kind.repeatable,
        metavar=declared.metavar,
        help=help_text(declared),
        **settings,
    )


def _completion(kind: Kind) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    return lambda context, parameter, typed: [text for text in kind.choices if text.startswith(typed)]
