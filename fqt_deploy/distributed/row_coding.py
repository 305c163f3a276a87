"""How rows of gradients are written into a message: as they are, or as 4-bit codes."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fqt_deploy.runtime.channel_codes import ChannelCodes, Draws, encoded_bytes


class RowCoding(Protocol):
    """A way to write rows.

    Attributes:
        exact: whether what is read is what was written.
    """

    exact: bool

    def row_bytes(self, elements: int) -> int:
        """Bytes of a row of so many float32."""

    def write(self, gradient: Tensor, kept: Tensor, out: Tensor) -> None:
        """Write the rows ``kept``, [K] int32, of ``gradient``, [O, J] float32, to ``out``, [K * row_bytes] uint8."""

    def read(self, written: Tensor, rows: int, elements: int) -> Tensor:
        """Returns [rows, elements] float32, valid until the next call, from [rows * row_bytes] uint8."""


class PlainRows:
    """Rows as they are."""

    exact = True

    def row_bytes(self, elements: int) -> int:
        """Bytes of a row of so many float32."""
        return 4 * elements

    def write(self, gradient: Tensor, kept: Tensor, out: Tensor) -> None:
        """Copy the rows."""
        torch.index_select(gradient, 0, kept, out=self.read(out, *_extents(gradient, kept)))

    def read(self, written: Tensor, rows: int, elements: int) -> Tensor:
        """The same bytes as numbers."""
        return written.view(torch.float32).view(rows, elements)


class CodedRows:
    """Rows as codes of 4 bits with one scale each.

    Args:
        channel_codes: writes and reads codes.
    """

    exact = False

    def __init__(self, channel_codes: ChannelCodes) -> None:
        self._channel_codes, self._numbers = channel_codes, torch.empty(0)
        self.draws = Draws(0)

    def row_bytes(self, elements: int) -> int:
        """Bytes of a row of so many float32."""
        return encoded_bytes(elements)

    def write(self, gradient: Tensor, kept: Tensor, out: Tensor) -> None:
        """Round the rows at random, by the next key of ``draws``."""
        rows = self._memory(*_extents(gradient, kept))
        torch.index_select(gradient, 0, kept, out=rows)
        self._channel_codes.encode(rows.numpy(), self.draws.key(), out.numpy())

    def read(self, written: Tensor, rows: int, elements: int) -> Tensor:
        """The numbers that the codes stand for."""
        numbers = self._memory(rows, elements)
        self._channel_codes.decode(written.numpy(), numbers.numpy(), add=False)
        return numbers

    def _memory(self, rows: int, elements: int) -> Tensor:
        """[rows, elements] float32 in memory that is kept for all steps."""
        if self._numbers.numel() < rows * elements:
            self._numbers = torch.empty(rows * elements)
        return self._numbers[: rows * elements].view(rows, elements)


def _extents(gradient: Tensor, kept: Tensor) -> tuple[int, int]:
    return kept.numel(), gradient.shape[1]
