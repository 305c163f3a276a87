"""A plan of layers in a file: which stay in fp32, and how many bits the others keep.

::

    format = 1

    [layers]
    "layer1.0.conv1" = [1, 4]    # bits of the weights, of the activations
    "layer1.0.conv2" = "fp32"
    "layer4.*" = [1, 2]

It is another spelling of ``--exclude`` for ``"fp32"``, and of ``--bits`` for pairs, of which the first that matches
counts; ``include = ["GLOB", ...]``, before the layers, is one of ``--include``. What is wrong is told with its line.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fqt_deploy.core.diagnostics import FqtError, SourceLocation
from fqt_deploy.core.layer_bits import ACTIVATION_BITS, WEIGHT_BITS, LayerBits

FORMAT = 1
SUFFIX = ".plan.toml"
FP32 = "fp32"
_KEYS = ("format", "include", "layers")
_PAIR = (
    f"it must be {FP32!r} or [bits of weights, bits of activations] with {', '.join(map(str, WEIGHT_BITS))} and one of "
    f"{', '.join(map(str, ACTIVATION_BITS))}"
)
_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)$")


class WrittenGlob(str):
    """A glob over layers that knows where in a file it was written.

    Attributes:
        path: the file.
        line: number of the line; None if it is not known.
    """

    path: Path
    line: int | None

    @classmethod
    def at(cls, path: Path, line: int | None, glob: str) -> WrittenGlob:
        """The glob ``glob``, written in ``line`` of the file ``path``."""
        written = cls(glob)
        written.path, written.line = path, line
        return written

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """What another process, and a fingerprint, sees of it: two files with the same globs are one artifact."""
        return str, (str(self),)


def no_match(option: str, glob: str, layers: list[str]) -> FqtError:
    """The error of a ``glob`` that matches none of ``layers``: of ``option``, or of the line that it was written in."""
    hint = f"the layers are: {', '.join(layers)}"
    if isinstance(glob, WrittenGlob):
        return _wrong(glob.path, glob.line, f"{str(glob)!r} matches no layer", hint, code="FQT204")
    return FqtError(f"{option} {glob!r} matches no layer", code="FQT204", hint=hint)


@dataclass(frozen=True)
class LayerPlan:
    """The content of a plan, as the options that it stands for.

    Attributes:
        include: globs; when given, exactly the matching layers are candidates for 1 bit.
        exclude: globs of the layers in fp32.
        bits: layers with bits of their own; the first that matches counts.
    """

    include: tuple[str, ...]
    exclude: tuple[str, ...]
    bits: tuple[LayerBits, ...]


def read_plan(path: Path) -> LayerPlan:
    """The plan in the file ``path``.

    Raises:
        FqtError: FQT211 for a file that cannot be read, and for what is no plan, with its line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")  # with the mark that editors of Windows write in front
        content = tomllib.loads(text)
    except OSError as error:
        raise FqtError(f"cannot read {path}: {error.strerror}", code="FQT211") from None
    except UnicodeDecodeError:
        raise FqtError(f"{path} is no text", code="FQT211") from None
    except (ValueError, RecursionError) as error:  # TOML's reader lets Python's own pass: an integer is too long
        found = _AT_LINE.search(str(error))
        raise _wrong(path, int(found[1]) if found else None, _AT_LINE.sub("", str(error)), "a plan is TOML") from None
    return _plan(path, content, _Lines(text))


def _plan(path: Path, content: dict[str, Any], lines: _Lines) -> LayerPlan:
    if unknown := [key for key in content if key not in _KEYS]:
        hint = f"a plan holds {', '.join(_KEYS)}; layers stand below [layers], paths in quotation marks"
        raise _wrong(path, lines.of(unknown[0]), f"{unknown[0]!r} is no key of a plan", hint)
    if type(content.get("format")) is not int or content["format"] != FORMAT:
        message = f"the plan has format {content.get('format')!r}; this version reads {FORMAT}"
        raise _wrong(path, lines.of("format"), message, f"a plan begins with the line: format = {FORMAT}")
    include, layers = content.get("include", []), content.get("layers", {})
    if not isinstance(include, list) or not all(isinstance(glob, str) and glob for glob in include):
        raise _wrong(path, lines.of("include"), f"include is {include!r}; it must be a list of globs", None)
    if not isinstance(layers, dict):
        raise _wrong(path, lines.of("layers"), f"layers is {layers!r}; it must be a table", "write [layers]")
    exclude: list[str] = []
    bits: list[LayerBits] = []
    for glob, value in layers.items():
        line = lines.of(glob, "layers")
        if not glob:
            raise _wrong(path, line, "a layer has an empty name", None)
        written = WrittenGlob.at(path, line, glob)
        if value == FP32:
            exclude.append(written)
        elif isinstance(value, list) and len(value) == 2 and _are_bits(*value):
            bits.append(LayerBits(written, *value))
        else:
            quoted = "a path with dots stands in quotation marks" if isinstance(value, dict) else None
            raise _wrong(path, line, f"{glob!r} is {value!r}; {_PAIR}", quoted)
    included = tuple(WrittenGlob.at(path, lines.of("include"), glob) for glob in include)
    return LayerPlan(included, tuple(exclude), tuple(bits))


def _are_bits(weights: Any, activations: Any) -> bool:
    integers = type(weights) is int and type(activations) is int
    return integers and weights in WEIGHT_BITS and activations in ACTIVATION_BITS


class _Lines:
    """The numbers of a file's lines by the key that each begins with: TOML's reader does not tell."""

    def __init__(self, text: str) -> None:
        self._by_key = {(table, key): number for number, table, key in reversed([*_keys(text)])}

    def of(self, key: str, table: str = "") -> int | None:
        """The number of the first line with ``key`` in ``table``; None if it begins no line."""
        return self._by_key.get((table, key))


def _keys(text: str) -> Iterator[tuple[int, str, str]]:
    """The number of each line that begins with a key, the table that it is in, and the key."""
    table = ""
    lines = text.replace("\r\n", "\n").split("\n")  # as TOML's reader counts them, unlike ``splitlines``
    for number, line in enumerate(lines, start=1):
        try:
            found = [*tomllib.loads(line)]
        except (ValueError, RecursionError):
            found = [line.partition("=")[0].strip().strip("\"'")]
        yield from ((number, table, key) for key in found)
        if line.lstrip().startswith("[") and found:
            table = found[0]


def _wrong(path: Path, line: int | None, message: str, hint: str | None, *, code: str = "FQT211") -> FqtError:
    error = FqtError(message if line else f"{message}, in {path}", code=code, hint=hint)
    error.location = SourceLocation(path, line, path.parent) if line else None
    return error
