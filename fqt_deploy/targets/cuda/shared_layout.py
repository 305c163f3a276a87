"""Layouts of strings of bits in shared memory: by row, by word, or in the core matrices of the PTX ISA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

WORDS = 16
"""Number of words of the contraction that are in shared memory at once: 64 bytes of a row."""


class SharedLayout(Protocol):
    """A place for ``WORDS`` words of some rows."""

    @property
    def chunk(self) -> int:
        """Number of words that one copy moves."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the buffer, without the axis of its two slots."""

    def at(self, row: Any, word: Any) -> list[Any]:
        """Indices of word ``word`` of row ``row`` in the buffer."""

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
        """Shape of the buffer: rows, words."""
        return self.height, WORDS + 4

    def at(self, row: Any, word: Any) -> list[Any]:
        """Indices of a word in the buffer: row, word."""
        return [row, word]

    def place(self, index: Any) -> tuple[Any, Any]:
        """Row and word where chunk ``index`` begins; chunks are counted along a row first."""
        return index // (WORDS // self.chunk), index % (WORDS // self.chunk) * self.chunk

    def within(self, i: int) -> tuple[int, int]:
        """Row and word of word ``i`` of a chunk, which lies along a row."""
        return 0, i


@dataclass(frozen=True)
class WordMajor:
    """The same word of all rows side by side, padded likewise."""

    height: int
    chunk: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the buffer: words, rows."""
        return WORDS, self.height + 8

    def at(self, row: Any, word: Any) -> list[Any]:
        """Indices of a word in the buffer: word, row."""
        return [word, row]

    def place(self, index: Any) -> tuple[Any, Any]:
        """Row and word where chunk ``index`` begins; chunks are counted down the rows first."""
        return index % (self.height // self.chunk) * self.chunk, index // (self.height // self.chunk)

    def within(self, i: int) -> tuple[int, int]:
        """Row and word of word ``i`` of a chunk, which lies across rows."""
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
        """Shape of the buffer: blocks along the contraction, rows, words."""
        return WORDS // 4, self.height, 4

    @property
    def descriptor(self) -> int:
        """Bits 16 to 63 of a matrix descriptor: offsets, in units of 16 bytes, along the contraction and along rows."""
        return self.height << 16 | 8 << 32

    def at(self, row: Any, word: Any) -> list[Any]:
        """Block, row, word in the block."""
        return [word // 4, row, word % 4]

    def place(self, index: Any) -> tuple[Any, Any]:
        """Row and word where chunk ``index`` begins: eight rows first, then the words of those."""
        of_row = WORDS // self.chunk
        return index // (8 * of_row) * 8 + index % 8, index // 8 % of_row * self.chunk

    def within(self, i: int) -> tuple[int, int]:
        """Row and word of word ``i`` of a chunk, which lies along a row."""
        return 0, i
