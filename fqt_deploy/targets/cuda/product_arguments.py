"""What the rules of products read off their functions."""

from __future__ import annotations

import json
import math
from typing import Any

from tvm import tirx

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets.cuda.bit_operand import Operand


def arguments_of(function: tirx.PrimFunc) -> list[Any] | None:
    """The arguments of the kernel's op, tensors None; None if something was inlined into it."""
    text = function.attrs.get("fqt.arguments")
    return None if text is None else list(json.loads(str(text)))


def words_at_once(words: int) -> int:
    """Words of one copy from strings of ``words`` words each: 1, 2 or 4, so that all copies are aligned."""
    return math.gcd(words, 4)


def panel_columns(panels: tirx.Buffer, columns: int, words: int) -> Operand:
    """The right side of a product from panels [ceil(columns / 16), words, 16]."""
    stored = int(panels.shape[0]) * PANEL

    def source(column: Any, _: Any, word: Any) -> tuple[Any, Any, list[Any]]:
        return tirx.all(column < stored, word < words), panels, [column // PANEL, word, column % PANEL]

    return Operand(columns, 1, 4, True, source)
