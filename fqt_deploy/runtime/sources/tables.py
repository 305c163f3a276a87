"""Rows of numbers: CSV files, and Parquet, Arrow and Feather files, which need pyarrow (the extra ``tables``).

One column is the target, ``target``, ``label`` or ``y`` by name, else the last; the others are the inputs in their
order.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.runtime.sources.source import Array, missing_package, unusable

TARGETS = ("target", "label", "y")
"""The names that the column of targets may have; any other table has it last."""


class Table:
    """The rows of a table, kept as float32 inputs and a column of targets.

    Args:
        columns: names of the columns.
        values: [rows, columns] float64.
        shape: extents of a sample's input, as many elements as there are other columns.
        path: the file, for messages.

    Raises:
        FqtError: FQT510 for another number of columns.
    """

    def __init__(self, columns: Sequence[str], values: Array, shape: tuple[int, ...], path: Path) -> None:
        names = [name.strip().lower() for name in columns]
        at = next((names.index(name) for name in TARGETS if name in names), len(names) - 1)
        wanted = int(np.prod(shape, dtype=np.int64))
        if len(names) - 1 != wanted:
            raise unusable(
                path,
                f"it has {len(names) - 1} columns beside the target {columns[at]!r}; a sample takes {wanted}",
                f"the target is the column {', '.join(TARGETS)}, or the last",
            )
        self._x = np.delete(values, at, axis=1).astype(np.float32).reshape(len(values), *shape)
        y = values[:, at]
        self._y = y.astype(np.int64) if np.array_equal(y, np.floor(y)) else y.astype(np.float32)

    def __len__(self) -> int:
        return len(self._y)

    def rows(self, index: NDArray[np.int64]) -> tuple[Array, Array]:
        """Inputs and targets of the rows ``index``."""
        return self._x[index], self._y[index]


def read_csv(path: Path, shape: tuple[int, ...]) -> Table:
    """The table of a CSV file; its first line names the columns, or is a row of numbers as the others."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unusable(path, str(error)) from None
    if not lines:
        raise unusable(path, "it has no rows")
    named = not all(map(_is_number, lines[0]))
    columns = lines[0] if named else [f"column {i + 1}" for i in range(len(lines[0]))]
    values = np.empty((len(lines) - named, len(columns)))
    for row, line in enumerate(lines[named:]):
        try:
            values[row] = [float(text) for text in line]
        except ValueError:
            bad = next((text for text in line if not _is_number(text)), None)
            what = f"holds {bad!r}" if bad is not None else f"has {len(line)} columns, not {len(columns)}"
            raise unusable(path, f"row {row + 1} {what}", "every column is to hold numbers") from None
    return Table(columns, values, shape, path)


def read_arrow(path: Path, shape: tuple[int, ...]) -> Table:
    """The table of a Parquet, Arrow or Feather file."""
    try:
        import pyarrow
        import pyarrow.feather
        import pyarrow.parquet
    except ImportError:
        raise missing_package(path, "pyarrow, which reads it,", "tables") from None
    read = pyarrow.parquet.read_table if path.suffix == ".parquet" else pyarrow.feather.read_table
    try:
        table = read(path)
        values = np.column_stack([column.to_numpy().astype(np.float64) for column in table.columns])
    except (OSError, ValueError, TypeError, pyarrow.ArrowException) as error:
        raise unusable(path, str(error), "every column is to hold numbers") from None
    return Table(table.column_names, values, shape, path)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
