"""How strings of bits lie in shared memory: by row, by word, or in the core matrices of the PTX ISA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

WORDS = 16
"""Words of the contraction in shared memory at once: 64 bytes of a row."""


class SharedLayout(Protocol):
    """A place for ``WORDS`` words of some rows."""

    @property
    def chunk(self) -> int:
        """Words that are copied at once."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the buffer, without the axis of its two slots."""

    def at(self, row: Any, word: Any) -> list[Any]:
        """Indices of one word."""

    def place(self, index: Any) -> tuple[Any, Any]:
        """Row and word where chunk number ``index`` begins; neighbouring threads copy neighbouring chunks."""

    def within(self, i: int) -> tuple[int, int]:
        """Row and word of word ``i`` of a chunk, from where it begins."""


@dataclass(frozen=True)
class RowMajor:
    """Rows of words, padded so that the reads of a warp meet 32 different banks."""

    height: int
    chunk: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, words."""
        return self.height, WORDS + 4

    def at(self, row: Any, word: Any) -> list[Any]:
        """Row, word."""
        return [row, word]

    def place(self, index: Any) -> tuple[Any, Any]:
        """Along a row first."""
        return index // (WORDS // self.chunk), index % (WORDS // self.chunk) * self.chunk

    def within(self, i: int) -> tuple[int, int]:
        """Along the row."""
        return 0, i


@dataclass(frozen=True)
class WordMajor:
    """The same word of all rows side by side, padded likewise."""

    height: int
    chunk: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Words, rows."""
        return WORDS, self.height + 8

    def at(self, row: Any, word: Any) -> list[Any]:
        """Word, row."""
        return [word, row]

    def place(self, index: Any) -> tuple[Any, Any]:
        """Along rows first."""
        return index % (self.height // self.chunk) * self.chunk, index // (self.height // self.chunk)

    def within(self, i: int) -> tuple[int, int]:
        """Along rows."""
        return i, 0


@dataclass(frozen=True)
class CoreMatrices:
    """Blocks of 8 rows of 16 bytes, contiguous: a K-major operand without swizzling, as a matrix descriptor shows it.

    The next block along rows follows at once; the next along the contraction comes after those of all rows.
    """

    height: int
    chunk: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Blocks along the contraction, rows, words."""
        return WORDS // 4, self.height, 4

    @property
    def descriptor(self) -> int:
        """Bits 16 to 63 of a matrix descriptor: offsets, in units of 16 bytes, along the contraction and along rows."""
        return self.height << 16 | 8 << 32

    def at(self, row: Any, word: Any) -> list[Any]:
        """Block, row, word in the block."""
        return [word // 4, row, word % 4]

    def place(self, index: Any) -> tuple[Any, Any]:
        """Eight rows first, then the words of those."""
        of_row = WORDS // self.chunk
        return index // (8 * of_row) * 8 + index % 8, index // 8 % of_row * self.chunk

    def within(self, i: int) -> tuple[int, int]:
        """Along the row."""
        return 0, i
