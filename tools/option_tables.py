"""Write the option tables of ``docs/options.md`` from the declarations: ``python -m tools.option_tables``.

An option's text, default and values stand where it is declared: in ``core/options.py``, ``core/optimizer.py``,
``targets/*/options.py`` or ``cli_options.py``. A test compares the document with what they yield.
"""

from __future__ import annotations

from pathlib import Path

from fqt_deploy.cli_options import COMMAND_OPTIONS
from fqt_deploy.core.option import Option, by_section
from fqt_deploy.settings import all_settings

OPTIONS = Path(__file__).resolve().parents[1] / "docs" / "options.md"
BEGIN, END = "<!-- options: python -m tools.option_tables -->\n", "<!-- end of options -->\n"


def tables() -> str:
    """The tables of options, one for each heading, commands' options included."""
    sections = by_section([*COMMAND_OPTIONS.values(), *all_settings().values()])
    return "\n".join(
        f"| {heading} | default | |\n|---|---|---|\n" + "".join(_row(declared) for declared in options)
        for heading, options in sections.items()
    )


def rewritten(document: str) -> str:
    """The text ``document`` with these tables between the two marks, of which it has one each."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{tables()}{END}{after}"


def _row(declared: Option) -> str:
    flag = declared.flags[-1]
    values = "" if declared.kind.choices or declared.kind.is_flag else f" {declared.metavar}"
    text = declared.told.text
    if any(value not in text for value in declared.kind.choices):
        text = f"{text} One of {', '.join(declared.kind.choices)}."
    if declared.limited:
        text = f"For {', '.join(declared.owners)}. {text}"
    default = "off" if declared.kind.is_flag else declared.default_text or "none"
    return f"| `{flag}{values}` | {default} | {text} |\n"


if __name__ == "__main__":
    OPTIONS.write_text(rewritten(OPTIONS.read_text()))
