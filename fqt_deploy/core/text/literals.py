"""Types and constants of a graph, written as text and read from it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.text.scanner import NUMBER, STRING, Scanner

_DTYPES = {
    "f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16, "i64": torch.int64,
    "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "u8": torch.uint8, "bool": torch.bool,
    "c64": torch.complex64, "c128": torch.complex128, "u16": torch.uint16, "u32": torch.uint32, "u64": torch.uint64,
}  # fmt: skip
_WORDS: dict[str, Any] = {
    **_DTYPES, "None": None, "True": True, "False": False,
    "cpu": torch.device("cpu"), "meta": torch.device("meta"), "strided": torch.strided, "sparse_coo": torch.sparse_coo,
    "contiguous_format": torch.contiguous_format, "preserve_format": torch.preserve_format,
    "channels_last": torch.channels_last, "channels_last_3d": torch.channels_last_3d,
}  # fmt: skip
"""Constants that are written as one word."""
_SPELLINGS = {value: word for word, value in _WORDS.items() if not isinstance(value, bool)}

_TENSOR = re.compile(r"(\w+)\[([\d, ]*)\]")
_TYPE = re.compile(r"\?|\w+\[[\d, ]*\]|\([^)\n]*\)")
VALUE = re.compile(r"%[A-Za-z_]\w*")
_WORD = re.compile(r"[A-Za-z_]\w*")


def constant_text(constant: Any) -> str:
    """A constant or a node's name as ``parse_constant`` reads it: ``%x``, ``[1, 2]``, ``0.1``, ``f32``, ``"zero"``."""
    if isinstance(constant, fx.Node):
        return f"%{constant.name}"
    if isinstance(constant, (list, tuple)):
        return "[" + ", ".join(constant_text(item) for item in constant) + "]"
    if isinstance(constant, str):
        return json.dumps(constant)
    if isinstance(constant, (bool, int, float)):
        return repr(constant)
    return _SPELLINGS.get(constant, repr(constant))


def parse_constant(scanner: Scanner, node_called: Callable[[str, int], fx.Node]) -> Any:
    """The constant that ``constant_text`` wrote; ``node_called(name, position)`` finds a node."""
    scanner.skip_blanks()
    at = scanner.position
    if (name := scanner.accept(VALUE)) is not None:
        return node_called(name[1:], at)
    if scanner.accept("[") is not None:
        items: list[Any] = []
        while scanner.accept("]") is None:
            if items:
                scanner.expect(",", "',' or ']'")
            items.append(parse_constant(scanner, node_called))
        return items
    if (string := scanner.accept(STRING)) is not None:
        return json.loads(string)
    if (number := scanner.accept(NUMBER)) is not None:
        return int(number) if re.fullmatch(r"[-+]?\d+", number) else float(number)
    word = scanner.expect(_WORD, "a value")
    if word not in _WORDS:
        raise scanner.unknown("constant", word, _WORDS, at)
    return _WORDS[word]


def type_text(value: Any) -> str:
    """The type of what a node computes: ``f32[8, 40]``, or ``(f32[8], i64[])`` for several results."""
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join("None" if item is None else type_text(item) for item in value) + ")"
    if not isinstance(value, torch.Tensor):
        return "?"
    dtype = _SPELLINGS.get(value.dtype, str(value.dtype).removeprefix("torch."))
    return f"{dtype}[{', '.join(str(int(d)) for d in value.shape)}]"


def parse_type(scanner: Scanner) -> str:
    """A type as ``type_text`` writes it; ``?`` where it is not stated."""
    found = scanner.expect(_TYPE, "a type such as f32[8, 40]")
    return ", ".join(part.strip() for part in found.split(","))


def parse_tensor_type(scanner: Scanner) -> tuple[list[int], torch.dtype]:
    """The shape and the dtype that a type of one tensor says."""
    scanner.skip_blanks()
    at = scanner.position
    match = _TENSOR.fullmatch(parse_type(scanner))
    if match is None or match[1] not in _DTYPES:
        raise scanner.error("the type of an input is that of one tensor, such as f32[8, 40]", at=at)
    return [int(extent) for extent in match[2].split(",") if extent.strip()], _DTYPES[match[1]]
