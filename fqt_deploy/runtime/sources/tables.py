"""Rows of numbers: CSV files, and Parquet, Arrow and Feather files, which need pyarrow (the extra ``tables``).

One column is the target, ``target``, ``label`` or ``y`` by name, else the last; the others are the inputs in their
order. A file is read once, block by block, into a temporary file of float32 numbers that is mapped into memory: it may
be larger than memory, and its rows are read in any order as quickly as those of a ``.npy`` file.
"""

from __future__ import annotations

import csv
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.runtime.sources.source import Array, missing_package, rows_of, unusable

TARGETS = ("target", "label", "y")
"""The names that the column of targets may have; any other table has it last."""
_ROWS = 4096
"""Number of rows that are read at a time."""
_DISK = Path("/var/tmp")
"""Where temporary files that may be large belong: ``/tmp`` is memory on many systems."""


class Table:
    """The rows of a table; in memory are its targets, on the disk the inputs as float32.

    Args:
        columns: names of the columns.
        blocks: the rows from first to last, [n, columns] float64 each.
        shape: extents of a sample's input, as many elements as there are other columns.
        path: the file, for messages.

    Raises:
        FqtError: FQT510 for another number of columns, for no rows, or where the disk is full.
    """

    def __init__(self, columns: Sequence[str], blocks: Iterable[Array], shape: tuple[int, ...], path: Path) -> None:
        names = [name.strip().lower() for name in columns]
        at = next((names.index(name) for name in TARGETS if name in names), len(names) - 1)
        wanted = int(np.prod(shape, dtype=np.int64))
        if len(names) - 1 != wanted:
            raise unusable(
                path,
                f"it has {len(names) - 1} columns beside the target {columns[at]!r}; a sample takes {wanted}",
                f"the target is the column {', '.join(TARGETS)}, or the last",
            )
        with _temporary_file(path) as file:
            targets = [_written(block, at, file, path) for block in blocks]
            y = np.concatenate([np.empty(0), *targets])
            if not len(y):
                raise unusable(path, "it has no rows")
            self._x: Array = np.memmap(file, np.float32, "r", shape=(len(y), *shape))
        self._y = y.astype(np.int64) if np.array_equal(y, np.floor(y)) else y.astype(np.float32)

    def __len__(self) -> int:
        return len(self._y)

    def rows(self, index: NDArray[np.int64]) -> tuple[Array, Array]:
        """Inputs and targets of the rows ``index``."""
        return rows_of(self._x, index), self._y[index]


def _temporary_file(path: Path) -> IO[bytes]:
    """A file without a name; its space is free again when the process ends, however it ends."""
    folder = str(_DISK) if "TMPDIR" not in os.environ and os.access(_DISK, os.W_OK) else None
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise _no_space(path, error) from None


def _written(block: Array, at: int, file: IO[bytes], path: Path) -> Array:
    """Write the inputs of ``block``, and return its column ``at``, the targets."""
    try:
        with np.errstate(over="ignore"):  # infinity is refused where a step takes it
            file.write(np.delete(block, at, axis=1).astype(np.float32).tobytes())
        file.flush()
    except OSError as error:
        raise _no_space(path, error) from None
    return block[:, at].copy()


def _no_space(path: Path, error: OSError) -> Exception:
    return unusable(path, f"its rows do not fit into a temporary file: {error.strerror}", "TMPDIR names another folder")


def read_csv(path: Path, shape: tuple[int, ...]) -> Table:
    """The table of a CSV file; its first line names the columns, or is a row of numbers as the others."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = (line for line in file if line.strip())
            first = next(lines, None)
            if first is None:
                raise unusable(path, "it has no rows")
            head = next(csv.reader([first]))
            named = not all(map(_is_number, head))
            columns = head if named else [f"column {i + 1}" for i in range(len(head))]
            rest = lines if named else itertools.chain([first], lines)
            return Table(columns, _csv_blocks(rest, len(columns), path), shape, path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unusable(path, str(error)) from None


def _csv_blocks(lines: Iterator[str], columns: int, path: Path) -> Iterator[Array]:
    for start in itertools.count(0, _ROWS):
        block = list(itertools.islice(lines, _ROWS))
        if not block:
            return
        try:
            values = np.loadtxt(block, np.float64, comments=None, delimiter=",", quotechar='"', ndmin=2)
        except ValueError:
            values = np.empty((0, 0))
        yield values if values.shape == (len(block), columns) else _parsed(block, start, columns, path)


def _parsed(block: Sequence[str], start: int, columns: int, path: Path) -> Array:
    """The numbers in lines of which NumPy's reader did not take all; FQT510 with the row that holds none."""
    values = np.empty((len(block), columns))
    for row, line in enumerate(csv.reader(block)):
        try:
            values[row] = [float(text) for text in line]
        except ValueError:
            bad = next((text for text in line if not _is_number(text)), None)
            what = f"holds {bad!r}" if bad is not None else f"has {len(line)} columns, not {columns}"
            raise unusable(path, f"row {start + row + 1} {what}", "every column is to hold numbers") from None
    return values


def read_arrow(path: Path, shape: tuple[int, ...]) -> Table:
    """The table of a Parquet, Arrow or Feather file; Arrow files may have the form of a stream."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_package(path, "pyarrow, which reads it,", "tables") from None
    try:
        if path.suffix.lower() == ".parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                batches = file.iter_batches(batch_size=_ROWS)
                return Table(file.schema_arrow.names, map(_numbers, batches), shape, path)
        with pyarrow.memory_map(str(path)) as mapped:
            reader = _arrow_reader(pyarrow, mapped)
            return Table(reader.schema.names, map(_numbers, _arrow_batches(reader)), shape, path)
    except (OSError, ValueError, TypeError, pyarrow.ArrowException) as error:
        raise unusable(path, str(error), "every column is to hold numbers") from None


def _arrow_reader(pyarrow: Any, mapped: Any) -> Any:
    try:
        return pyarrow.ipc.open_file(mapped)
    except pyarrow.ArrowInvalid:
        mapped.seek(0)
        return pyarrow.ipc.open_stream(mapped)


def _arrow_batches(reader: Any) -> Iterator[Any]:
    """The record batches of a file, which are read by their number, or of a stream, cut to a few rows each."""
    count = getattr(reader, "num_record_batches", None)
    whole = reader if count is None else map(reader.get_batch, range(count))
    for batch in whole:
        for start in range(0, batch.num_rows, _ROWS):
            yield batch.slice(start, _ROWS)


def _numbers(batch: Any) -> Array:
    columns = [column.to_numpy(zero_copy_only=False).astype(np.float64) for column in batch.columns]
    return np.column_stack(columns) if columns else np.empty((batch.num_rows, 0))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
