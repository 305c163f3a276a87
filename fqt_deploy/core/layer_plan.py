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
    """A glob over layers that knows the line of a file it was written in.

    Attributes:
        location: the line.
    """

    location: SourceLocation

    @classmethod
    def at(cls, path: Path, line: int | None, glob: str) -> WrittenGlob:
        """The glob ``glob``, written in ``line`` of the file ``path``."""
        written = cls(glob)
        written.location = SourceLocation(path, line or 1, path.parent)
        return written


def no_match(option: str, glob: str, layers: list[str]) -> FqtError:
    """The error of a ``glob`` that matches none of ``layers``: of ``option``, or of the line that it was written in."""
    written = isinstance(glob, WrittenGlob)
    error = FqtError(
        f"{str(glob)!r} matches no layer" if written else f"{option} {glob!r} matches no layer",
        code="FQT204",
        hint=f"the layers are: {', '.join(layers)}",
    )
    error.location = glob.location if isinstance(glob, WrittenGlob) else None
    return error


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
        text = path.read_bytes().decode()
        content = tomllib.loads(text)
    except OSError as error:
        raise FqtError(f"cannot read {path}: {error.strerror}", code="FQT211") from None
    except UnicodeDecodeError:
        raise FqtError(f"{path} is no text", code="FQT211") from None
    except tomllib.TOMLDecodeError as error:
        found = _AT_LINE.search(str(error))
        message = f"{_AT_LINE.sub('', str(error))} in {path.name}"
        raise _wrong(path, int(found[1]) if found else None, message, "a plan is TOML") from None
    return _plan(path, content, _Lines(path, text))


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
        line = lines.of(glob)
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

    def __init__(self, path: Path, text: str) -> None:
        self._by_key = {key: number for number, key in reversed([*_keys(text)])}

    def of(self, key: str) -> int | None:
        """The number of the first line with ``key``; None for one that is written over several lines."""
        return self._by_key.get(key)


def _keys(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            yield from ((number, key) for key in tomllib.loads(line))
        except tomllib.TOMLDecodeError:
            begin = line.partition("=")[0].strip()
            yield number, begin.strip("\"'")


def _wrong(path: Path, line: int | None, message: str, hint: str | None) -> FqtError:
    error = FqtError(message if line else f"{message}, in {path}", code="FQT211", hint=hint)
    error.location = SourceLocation(path, line, path.parent) if line else None
    return error
