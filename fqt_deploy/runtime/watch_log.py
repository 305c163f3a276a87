"""Statistics of training in a CSV file, and for TensorBoard."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.runtime.event_file import EventFile
from fqt_deploy.runtime.watch import COLUMNS, TrainingWatch, WatchRow


class WatchLog:
    """Appends rows to a CSV file and writes scalars ``watch/STATISTIC/LAYER``; either may be None."""

    def __init__(self, csv_file: Path | None, tensorboard: Path | None) -> None:
        self._csv, self._folder = csv_file, tensorboard
        self._events: EventFile | None = None
        self._file: TextIO | None = None

    def write(self, rows: Iterable[WatchRow]) -> None:
        """Write the rows of a step; FQT508 if that cannot be done."""
        found = list(rows)
        if not found:
            return
        try:
            if self._csv is not None:
                self._append(self._csv, found)
            if self._folder is not None:
                self._events = self._events or EventFile(self._folder)
                self._events.scalars(
                    (
                        (f"watch/{name}/{row.layer}", value)
                        for row in found
                        for name in COLUMNS[2:]
                        if not math.isnan(value := getattr(row, name))
                    ),
                    found[0].step,
                )
        except OSError as error:
            raise FqtError(f"cannot write {error.filename}: {error.strerror}", code="FQT508") from None

    def _append(self, path: Path, rows: Iterable[WatchRow]) -> None:
        """Add lines to the file, which stays open: opening it costs more than a look."""
        if self._file is None:
            new = not path.exists() or not path.stat().st_size
            self._file = path.open("a", newline="")
            if new:
                csv.writer(self._file).writerow(COLUMNS)
        csv.writer(self._file).writerows([_text(getattr(row, name)) for name in COLUMNS] for row in rows)
        self._file.flush()

    def close(self) -> None:
        """Close the files; what was written is in them already."""
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()
        self._file = self._events = None


class LoggedWatch:
    """A watch whose rows are logged; None watches nothing.

    Attributes:
        told: one line about the step that was watched last; "" before.
    """

    def __init__(self, watch: TrainingWatch | None, log: WatchLog) -> None:
        self._watch, self._log = watch, log
        self.told = ""

    def begin(self) -> None:
        """To be called before each step."""
        if self._watch is not None:
            self._watch.begin()

    def end(self) -> None:
        """To be called after each step."""
        if self._watch is not None and (rows := self._watch.end()):
            self._log.write(rows)
            self.told = _summary(rows)

    def close(self) -> None:
        """Close what it logs to."""
        self._log.close()


def _summary(rows: list[WatchRow]) -> str:
    """The extremes of a step's rows, as a line."""
    said = [f"watched step {rows[0].step}"]
    if norms := [row for row in rows if not math.isnan(row.grad_norm)]:
        low, high = min(norms, key=lambda row: row.grad_norm), max(norms, key=lambda row: row.grad_norm)
        said.append(f"gradient norm {low.grad_norm:.3g} ({low.layer}) to {high.grad_norm:.3g} ({high.layer})")
    if flipped := [row for row in rows if not math.isnan(row.flips)]:
        most = max(flipped, key=lambda row: row.flips)
        said.append(f"signs flipped at most {100 * most.flips:.2g} % ({most.layer})")
    return ", ".join(said)


def read_watch_log(path: Path) -> tuple[dict[str, Any], ...]:
    """The rows of a CSV file that ``WatchLog`` wrote, numbers as numbers and what is not known as None.

    Raises:
        FqtError: FQT502 if it is another file, or cannot be read.
    """
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise FqtError(f"{path} is no log of --watch", code="FQT502", hint="fqt-train --watch-log writes it")
            return tuple(
                {
                    "step": int(row["step"]),
                    "layer": row["layer"],
                    **{name: float(row[name]) if row[name] else None for name in COLUMNS[2:]},
                }
                for row in reader
            )
    except OSError as error:
        raise FqtError(f"cannot read {path}: {error.strerror}", code="FQT502") from None
    except (ValueError, TypeError) as error:
        raise FqtError(f"{path} is damaged: {error}", code="FQT502") from None


def _text(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value
