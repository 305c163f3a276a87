"""The command ``report``: fill the tables and plots of a Markdown document from the results it names.

A block begins with ``<!-- KIND key=value ... -->`` and ends with ``<!-- end -->``; what lies between is replaced. Keys
are ``results`` (a file of records, relative to the document), fields of a job (``phase=transfer``) that choose among
them, ``theory`` and ``race`` (files of those commands), and ``file`` (where a plot is written).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fqt_deploy.core.diagnostics import FqtError
from tools.accuracy.frontier import frontier_table
from tools.accuracy.ideas_table import ideas_table
from tools.accuracy.job import Record, read_records
from tools.accuracy.race_tables import time_table
from tools.accuracy.tables import TABLES, same_setting
from tools.accuracy.theory_tables import THEORY_TABLES

BLOCK = re.compile(r"<!-- (?P<kind>[a-z-]+) (?P<keys>[^>]*?) -->\n.*?<!-- end -->", re.DOTALL)
_MIXED = ("runs", "time", "frontier", "frontier-plot")
"""Kinds whose records may differ in more than row, optimizer, learning rate and seed."""
_FILES = ("results", "theory", "race", "file")
"""Keys that name a file."""


@dataclass(frozen=True)
class Block:
    """One block of a document.

    Attributes:
        kind: name of the table or plot.
        keys: what the block says about it.
        document: the file it is in.
    """

    kind: str
    keys: dict[str, str]
    document: Path

    def fail(self, message: str, hint: str | None = None) -> FqtError:
        """The error that names this block and says ``message``."""
        return FqtError(f"{self.document}: {self.kind} {self.keys}: {message}", code="FQT502", hint=hint)

    def file(self, key: str) -> Path:
        """The file that a key names."""
        if key not in self.keys:
            raise self.fail(f"names no {key}")
        return self.document.parent / self.keys[key]

    @property
    def filters(self) -> dict[str, list[str]]:
        """The allowed values by field."""
        return {name: value.split(",") for name, value in self.keys.items() if name not in _FILES}

    def records(self) -> list[Record]:
        """The records that the block asks for."""
        found = [record for record in read_records(self.file("results")) if _fits(asdict(record.job), self.filters)]
        if not found:
            raise self.fail("no results")
        if self.kind not in _MIXED and len({same_setting(record.job) for record in found}) > 1:
            raise self.fail("mixes settings", "name more fields of the job")
        return found

    def lines(self, key: str, filters: dict[str, list[str]]) -> list[dict[str, Any]]:
        """The lines of JSON of the file that ``key`` names, those that fit ``filters``."""
        path = self.file(key)
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        found = [line for line in lines if _fits(line, filters)]
        if not found:
            raise self.fail("no results")
        return found

    def race(self) -> dict[str, Any]:
        """The last measurement of steps of the block's network."""
        return self.lines("race", {"network": self.filters["network"]})[-1]


def add_to(commands: Any) -> None:
    """Add the command ``report`` to ``commands``."""
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

    def fill(match: re.Match[str]) -> str:
        keys = dict(pair.split("=", 1) for pair in match["keys"].split())
        lines = _render(Block(match["kind"], keys, document), plots)
        return "\n".join([f"<!-- {match['kind']} {match['keys']} -->", *lines, "<!-- end -->"])

    return BLOCK.sub(fill, document.read_text())


def _render(block: Block, plots: bool) -> list[str]:
    if block.kind in TABLES:
        return TABLES[block.kind](block.records())
    if block.kind in THEORY_TABLES:
        return THEORY_TABLES[block.kind](block.lines("theory", block.filters))
    if block.kind == "ideas":
        return ideas_table(block.records())
    if block.kind == "time":
        return time_table(block.records(), block.race())
    if block.kind == "frontier":
        return frontier_table(block.records(), block.race())
    if block.kind not in _PLOTS:
        kinds = [*TABLES, *THEORY_TABLES, "ideas", "time", "frontier", *_PLOTS]
        raise block.fail("there is no such table or plot", f"there are {kinds}")
    if plots:
        _PLOTS[block.kind](block)
    return [f"![{block.kind}]({block.keys['file']})"]


def _curves(block: Block) -> None:
    from tools.accuracy.plots import validation_curves

    validation_curves(block.records(), block.file("file"))


def _learning_rates(block: Block) -> None:
    from tools.accuracy.plots import learning_rates

    learning_rates(block.records(), block.file("file"))


def _noise_by_layer(block: Block) -> None:
    from tools.accuracy.plots import noise_by_layer

    noise_by_layer(block.lines("theory", block.filters), block.file("file"))


def _sensitivity(block: Block) -> None:
    from tools.accuracy.plots import sensitivity

    sensitivity(block.records(), block.lines("theory", {"kind": ["step"]}), block.file("file"))


def _frontier(block: Block) -> None:
    from tools.accuracy.frontier import frontier_plot

    frontier_plot(block.records(), block.race(), block.file("file"))


_PLOTS: dict[str, Callable[[Block], None]] = {
    "curves": _curves,
    "frontier-plot": _frontier,
    "learning-rates": _learning_rates,
    "noise-by-layer": _noise_by_layer,
    "sensitivity": _sensitivity,
}
"""Plots by the name that a document asks for."""


def _fits(fields: dict[str, Any], filters: dict[str, list[str]]) -> bool:
    return all(str(fields[name]) in allowed for name, allowed in filters.items())
