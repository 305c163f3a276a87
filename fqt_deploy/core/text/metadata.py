"""The metadata that a line gives of its node: ``{backward layer=features.3 seq=17 at=model.py:12}``."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

from torch import fx

from fqt_deploy.core.diagnostics import SourceLocation
from fqt_deploy.core.graph import Phase, TrainingGraph
from fqt_deploy.core.text.scanner import NAME, Scanner, quoted

_INTEGERS = {"seq": "seq_nr", "samples": "samples", "kept": "kept"}
_NAMES = {"layer": "layer", "role": "role", "scatters": "scatters", "direction": "direction", "record": "record"}
_KEYS = (*_INTEGERS, *_NAMES, "at")
_INTEGER = re.compile(r"\d+")
_PLACE = re.compile(r"[\w./+-]+:\d+")


def metadata_text(node: fx.Node) -> str:
    """The metadata of ``node`` in braces; nothing for a node of forward that belongs to no layer.

    ``record``, the layer whose product the node is, is left out where it is the layer that the node lies in.
    """
    meta = node.meta
    words = [phase] if (phase := meta.get("phase", "forward")) != "forward" else []
    layer, record = meta.get("layer") or "", meta.get("record")
    names = {key: str(meta.get(at) or "") for key, at in _NAMES.items()}
    names["record"] = record.path if record is not None and not (record.path == layer and meta.get("direction")) else ""
    words += [f"{key}={quoted(name)}" for key, name in names.items() if name]
    words += [f"{key}={meta[at]}" for key, at in _INTEGERS.items() if meta.get(at) is not None]
    if (location := SourceLocation.of(node)) is not None:
        place = str(location)
        words.append(f"at={place if _PLACE.fullmatch(place) else json.dumps(place)}")
    return "{" + " ".join(words) + "}" if words else ""


def parse_metadata(scanner: Scanner, graph: TrainingGraph) -> dict[str, Any]:
    """The entries of ``node.meta`` that ``metadata_text`` wrote; layers are those of ``graph``."""
    meta: dict[str, Any] = {"layer": "", "phase": "forward"}
    if scanner.accept("{") is None:
        return meta
    start = scanner.position
    while scanner.accept("}") is None:
        scanner.skip_blanks()
        at = scanner.position
        key = scanner.expect(NAME, "'}' or a key")
        if key in get_args(Phase):
            meta["phase"] = key
            continue
        if key not in _KEYS:
            raise scanner.unknown("metadata", key, [*_KEYS, *get_args(Phase)], at)
        scanner.expect("=", "'='")
        meta |= _entry(scanner, key)
    _resolve_record(scanner, graph, meta, start)
    return meta


def _entry(scanner: Scanner, key: str) -> dict[str, Any]:
    if key in _INTEGERS:
        return {_INTEGERS[key]: int(scanner.expect(_INTEGER, "a number"))}
    if key in _NAMES:
        return {_NAMES[key]: scanner.name("a name")}
    scanner.skip_blanks()
    at = scanner.position
    place = scanner.accept(_PLACE) or scanner.name("a place such as model.py:12")
    path, _, line = place.rpartition(":")
    if not path or not line.isdigit():
        raise scanner.error(f"{place!r} is not a file and a line, such as model.py:12", at=at)
    return {"stack_trace": f'File "{path}", line {line}'}


def _resolve_record(scanner: Scanner, graph: TrainingGraph, meta: dict[str, Any], at: int) -> None:
    """Put the layer's record itself in the place of its name."""
    if "record" not in meta and "direction" not in meta:
        return
    path = meta.get("record", meta["layer"])
    meta["record"] = graph.layer(path)
    if meta["record"] is None:
        raise scanner.unknown("layer", path, [record.path for record in graph.layers], at)
