"""Loop nests of independent columns, in each of which something is done in order: scatters, running sums.

Such a nest is one block of loops after each other. The iterations of each loop depend on nothing that another one of
the same loop writes; what is inside an iteration, a serial loop or a single element, stays in its order. So results do
not depend on the number of threads. A target decides what runs the iterations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fqt_deploy.ops.lib.late_modules import te, tirx

IN_ORDER = "fqt.in_order"
"""Annotation of the block; its value is how many columns that follow each other are contiguous in memory."""


def in_order(
    shape: Sequence[int], dtype: str, operands: Sequence[te.Tensor], loops: Callable[..., list[Any]], *,
    contiguous: int, name: str,
) -> te.Tensor:  # fmt: skip
    """A result that is written by loops of independent iterations.

    Args:
        shape: of the result.
        dtype: of the result.
        operands: what is read.
        loops: from the buffers of the result and the operands to the loops, made with ``loop``.
        contiguous: columns that follow each other in memory.
        name: of the stage.
    """

    def body(inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        made = loops(*outputs, *inputs)
        return made[0] if len(made) == 1 else tirx.SeqStmt(made)

    return te.extern([list(shape)], list(operands), body, name=name, dtype=dtype, attrs={IN_ORDER: contiguous})


def loop(name: str, extent: int, body: Callable[[Any], Any]) -> Any:
    """``body`` of 0 to ``extent - 1``."""
    var = tirx.Var(name, "int32")
    return tirx.For(var, 0, extent, tirx.ForKind.SERIAL, body(var))


def loops_of(block: Any) -> list[Any]:
    """The loops of a block that is annotated with ``IN_ORDER``."""
    return list(block.body.seq) if isinstance(block.body, tirx.SeqStmt) else [block.body]


def unflattened(flat: Any, extents: Sequence[int]) -> list[Any]:
    """The position along each axis of row-major element ``flat``."""
    positions: list[Any] = []
    for extent in reversed(extents):
        first = len(positions) == len(extents) - 1
        positions.append(flat if first else tirx.floormod(flat, extent))
        flat = flat if first else tirx.floordiv(flat, extent)
    return positions[::-1]
