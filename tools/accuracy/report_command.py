"""``report``: fill the tables and plots of a Markdown document from the results it names.

A block begins with ``<!-- KIND key=value ... -->`` and ends with ``<!-- end -->``; what lies between is replaced. Keys
are ``results`` (a file of records, relative to the document), fields of a job (``phase=transfer``) that choose among
them, and ``file`` for a plot.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fqt_deploy.core.diagnostics import FqtError
from tools.accuracy.job import Record, read_records
from tools.accuracy.tables import TABLES, same_setting

BLOCK = re.compile(r"<!-- (?P<kind>[a-z-]+) (?P<keys>[^>]*?) -->\n.*?<!-- end -->", re.DOTALL)
_MIXED = ("runs",)
"""Kinds whose records may differ in more than row, optimizer, learning rate and seed."""


def add_to(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("report", help="fill the tables and plots of a document from its results")
    parser.add_argument("document", type=Path, nargs="?", default=Path("docs/accuracy.md"), help="default: %(default)s")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Rewrite the document, and the plots beside it."""
    document: Path = arguments.document
    if not document.is_file():
        raise FqtError(f"no document {document}", code="FQT502")
    text = filled(document, plots=True)
    document.write_text(text)
    print(f"{document}: {len(BLOCK.findall(text))} tables and plots")
    return 0


def filled(document: Path, *, plots: bool) -> str:
    """The document with its blocks filled.

    Args:
        document: the file.
        plots: also write the files of plots.
    """
    return BLOCK.sub(lambda block: _fill(block, document, plots), document.read_text())


def _fill(block: re.Match[str], document: Path, plots: bool) -> str:
    kind = block["kind"]
    keys = dict(pair.split("=", 1) for pair in block["keys"].split())
    lines = TABLES[kind](_records(kind, keys, document)) if kind in TABLES else _plot(kind, keys, document, plots)
    return "\n".join([f"<!-- {kind} {block['keys']} -->", *lines, "<!-- end -->"])


def _plot(kind: str, keys: dict[str, str], document: Path, plots: bool) -> list[str]:
    from tools.accuracy.plots import PLOTS

    if kind not in PLOTS:
        raise FqtError(f"{document}: no table or plot {kind!r}", code="FQT502", hint=f"there are {[*TABLES, *PLOTS]}")
    if plots:
        chosen = {name: value for name, value in keys.items() if name != "file"}
        PLOTS[kind](_records(kind, chosen, document), document.parent / keys["file"])
    return [f"![{kind}]({keys['file']})"]


def _records(kind: str, keys: dict[str, str], document: Path) -> list[Record]:
    """The records that a block asks for."""
    wanted = {name: value for name, value in keys.items() if name != "results"}
    records = [record for file in keys["results"].split(",") for record in read_records(document.parent / file)]
    found = [record for record in records if _fits(record, wanted)]
    if not found:
        raise FqtError(f"{document}: no results for {kind} {keys}", code="FQT502")
    if kind not in _MIXED and len({same_setting(record.job) for record in found}) > 1:
        raise FqtError(f"{document}: {kind} {keys} mixes settings", code="FQT502", hint="name more fields of the job")
    return found


def _fits(record: Record, wanted: dict[str, str]) -> bool:
    job = {name: str(value) for name, value in asdict(record.job).items()}
    return all(job[name] in value.split(",") for name, value in wanted.items())
