"""The right side of the products of bits, and how the left one is copied."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from fqt_deploy.ops.lib.packed_words import PANEL
from fqt_deploy.targets.cuda.bit_operand import Operand


def words_at_once(words: int) -> int:
    """Words of one copy from strings of ``words`` words each: 1, 2 or 4, so that all copies are aligned."""
    return math.gcd(words, 4)


def panel_columns(panels: tirx.Buffer, columns: int) -> Operand:
    """The right side of a product from panels [ceil(columns / 16), words, 16]."""
    stored, words = int(panels.shape[0]) * PANEL, int(panels.shape[1])

    def source(column: Any, _: Any, word: Any) -> tuple[Any, Any, list[Any]]:
        return tirx.all(column < stored, word < words), panels, [column // PANEL, word, column % PANEL]

    return Operand(columns, 1, 4, True, source)
