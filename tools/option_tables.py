"""Write the tables of options in ``docs/`` from the declarations: ``python -m tools.option_tables``.

An option's text, default and values stand where it is declared: in ``core/options.py``, ``core/optimizer.py``,
``targets/*/options.py``, ``cli_options.py``, ``training_options.py`` or ``export_options.py``. A test compares the
documents with what they yield.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fqt_deploy.cli_options import COMMAND_OPTIONS
from fqt_deploy.core.option import Option, by_section
from fqt_deploy.export_options import EXPORT_OPTIONS
from fqt_deploy.settings import all_settings
from fqt_deploy.training_options import TRAINING_OPTIONS

DOCS = Path(__file__).resolve().parents[1] / "docs"
TABLES: dict[str, tuple[str, list[Option]]] = {
    "fqt-compile": ("options.md", [*COMMAND_OPTIONS.values(), *all_settings().values()]),
    "fqt-train": ("commands.md", [*TRAINING_OPTIONS.values()]),
    "fqt-export": ("commands.md", [*EXPORT_OPTIONS.values()]),
}
"""The document that shows a command's options, and these."""


def tables(options: Iterable[Option]) -> str:
    """The tables of ``options``, one for each heading."""
    return "\n".join(
        f"| {heading} | default | |\n|---|---|---|\n" + "".join(_row(declared) for declared in found)
        for heading, found in by_section(options).items()
    )


def rewritten(document: str, command: str) -> str:
    """The text ``document`` with the tables of ``command`` between its two marks, of which it has one each."""
    begin = f"<!-- options of {command}: python -m tools.option_tables -->\n"
    end = f"<!-- end of options of {command} -->\n"
    before, _, rest = document.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{tables(TABLES[command][1])}{end}{after}"


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


def main() -> None:
    """Rewrite the documents."""
    for command, (name, _) in TABLES.items():
        path = DOCS / name
        path.write_text(rewritten(path.read_text(), command))


if __name__ == "__main__":
    main()
