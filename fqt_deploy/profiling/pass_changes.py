"""What each pass did to each layer, from the texts that ``fqt-compile --dump-ir`` wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from fqt_deploy.core.diagnostics import FqtError

_LAYER = re.compile(r"\blayer=(\"[^\"]*\"|[^\s}]+)")
_VALUE = re.compile(r"%[\w.]+")


def read_passes(folder: Path) -> Mapping[str, tuple[tuple[str, str, str], ...]]:
    """By layer, for each pass that changed it: its name, and the layer's lines of the graph before and after.

    Args:
        folder: the folder of ``--dump-ir``: a text after each pass, whose names begin with their numbers.

    Raises:
        FqtError: FQT501 if it holds no such texts.
    """
    files = sorted(path for path in folder.glob("[0-9]*") if path.is_file()) if folder.is_dir() else []
    if len(files) < 2:
        raise FqtError(
            f"{folder} holds no graphs", code="FQT501", hint="fqt-compile MODEL.py --dump-ir DIR writes them"
        )
    found: dict[str, list[tuple[str, str, str]]] = {}
    for (_, before), (name, after) in pairwise((path.stem, _by_layer(path)) for path in files):
        for layer in {**before, **after}:
            old, new = before.get(layer, ""), after.get(layer, "")
            if _shape(old) != _shape(new):
                found.setdefault(layer, []).append((name.partition("-")[2] or name, old, new))
    return {layer: tuple(changes) for layer, changes in found.items()}


def _by_layer(path: Path) -> dict[str, str]:
    """The lines of the text that belong to a layer, by layer."""
    lines: dict[str, list[str]] = {}
    for line in path.read_text(errors="replace").splitlines():
        if (match := _LAYER.search(line)) is not None:
            lines.setdefault(match[1].strip('"'), []).append(line.strip())
    return {layer: "\n".join(own) for layer, own in lines.items()}


def _shape(text: str) -> str:
    """The text without the names of values, which change though nothing else does."""
    return _VALUE.sub("%", text)
