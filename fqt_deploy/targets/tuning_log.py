"""Tiles that were measured, one JSON line each: those that come with a target, and those of a user's own log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tvm import tirx

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.targets.kernel_arguments import arguments_of

Tile = tuple[int, ...]
"""The largest extents of a kernel's tile; what each is, its rule says."""


@dataclass(frozen=True)
class TunedTile:
    """The tile that was fastest for one kernel.

    Attributes:
        processor: LLVM's name of it.
        form: name of the form that the tile is of.
        kernel: what ``kernel_signature`` says of it.
        tile: the choice.
        threads: that took part in the measurement.
        microseconds: microseconds of one call.
        default_microseconds: microseconds of one call with the tile that the form takes by itself.
    """

    processor: str
    form: str
    kernel: str
    tile: Tile
    threads: int
    microseconds: float
    default_microseconds: float


_OLD_FIELDS = {field.name for field in fields(TunedTile)} - {"form"} | {"rule"}
"""Fields of a line that names a class of rule instead of a form."""


def kernel_signature(function: tirx.PrimFunc) -> str:
    """Op, operand types and arguments of a kernel: kernels of equal signature have equal loop nests."""
    operands = [f"{p.dtype}{[int(d) for d in p.shape]}" for p in function.params]
    arguments = [f"{name}={json.dumps(value)}" for name, value in (arguments_of(function) or {}).items()]
    return " ".join(part.replace(" ", "") for part in (str(function.attrs["fqt.op"]), *operands, *arguments))


def read_tiles(path: Path) -> list[TunedTile]:
    """The lines of a log; none if there is no such file.

    Lines of before forms had names say which class of rule they are of. They are left out: ``--tune`` measures again.

    Raises:
        FqtError: FQT207 for a line that is not one of ours, with its number.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise FqtError(f"cannot read the tuning log {path}: {error}", code="FQT207") from None
    read = (_tile(line, f"{path}:{i}") for i, line in enumerate(lines, start=1) if line.strip())
    return [tile for tile in read if tile is not None]


def _tile(line: str, place: str) -> TunedTile | None:
    try:
        found: Any = json.loads(line)
        if isinstance(found, dict) and found.keys() == _OLD_FIELDS:
            return None
        tile = TunedTile(**{**found, "tile": tuple(found["tile"])})
    except (ValueError, TypeError, KeyError, RecursionError):
        tile = None
    if tile is None or not _is_possible(tile):
        names = ", ".join(field.name for field in fields(TunedTile))
        raise FqtError(
            f"{place} is not a line of a tuning log: it needs {names}",
            code="FQT207",
            hint="remove the line; --tune measures again what is missing",
        )
    return tile


def _is_possible(tile: TunedTile) -> bool:
    """Whether the fields are of their types, and extents such as a kernel may have."""
    texts = (tile.processor, tile.form, tile.kernel)
    numbers = (tile.threads, tile.microseconds, tile.default_microseconds)
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(number, (int, float)) and number >= 0 for number in numbers)
        and all(type(extent) is int and 1 <= extent < 2**31 for extent in tile.tile)
    )


def append_tiles(path: Path, tiles: Iterable[TunedTile]) -> None:
    """Add lines to a log; FQT508 if it cannot be written."""
    text = "".join(json.dumps(asdict(tile)) + "\n" for tile in tiles)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(text)
    except OSError as error:
        raise FqtError(f"cannot write the tuning log {path}: {error.strerror}", code="FQT508") from None


def tiles_of(processor: str, tiles: Iterable[TunedTile]) -> Mapping[tuple[str, str], Tile]:
    """Tiles for ``processor`` by form and kernel; later lines count."""
    return {(t.form, t.kernel): t.tile for t in tiles if t.processor == processor}
