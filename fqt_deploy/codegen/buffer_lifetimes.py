"""How long each array that kernels write is needed."""

from __future__ import annotations

from torch import fx

from fqt_deploy.codegen.kernel_grouping import Kernel, View
from fqt_deploy.codegen.memory_plan import Lifetime
from fqt_deploy.core.buffer import Buffer, buffer_of, buffers_of


def buffer_lifetimes(steps: list[Kernel | View], written: dict[fx.Node, list[fx.Node]]) -> dict[Buffer, Lifetime]:
    """Lifetime of every kernel result, in steps; ``written`` are the roots whose results replace state."""
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for position, step in enumerate(steps):
        if isinstance(step, View):
            last[buffer_of(step.source)] = position
            continue
        for leaf in step.leaves:
            last[buffer_of(leaf)] = position
        if step.root not in written:
            first |= dict.fromkeys(buffers_of(step.root), position)
    return {
        buffer: Lifetime(buffer.value.numel() * buffer.value.element_size(), begin, last.get(buffer, begin))
        for buffer, begin in first.items()
    }
