"""Scatters and running sums: a thread for each independent column, which works in order."""

from __future__ import annotations

from typing import Any, ClassVar

import tvm_ffi
from tvm import s_tir, tirx

from fqt_deploy.ops.lib.in_order import IN_ORDER, loops_of
from fqt_deploy.targets.cuda import generic
from fqt_deploy.targets.cuda.features import CudaFeatures
from fqt_deploy.targets.cuda.kernel_builder import ceil_div, launch, sequence, when, with_buffers
from fqt_deploy.targets.cuda.loop_nest import nest_of


class InOrderRule:
    """Takes functions with a block of independent columns (``ops/lib/in_order.py``)."""

    ops: ClassVar[frozenset[str]] = frozenset()

    def apply(self, function: tirx.PrimFunc, features: CudaFeatures) -> tirx.PrimFunc | None:
        """None without such a block; otherwise a launch for each stage in front of it, and for each of its loops."""
        root, blocks = function.body.block, []

        def visit(block: Any) -> None:
            if not block.same_as(root):
                blocks.append(block)

        tvm_ffi.structural_walk(root.body, (s_tir.SBlock, visit))
        if not blocks or IN_ORDER not in blocks[-1].annotations:
            return None
        *stages, columns = blocks
        statements = [generic.elementwise([nest_of(block)]) for block in stages]
        statements += [_thread_each(loop) for loop in loops_of(columns)]
        return function.with_body(with_buffers(list(root.alloc_buffers), sequence(*statements)))


def _thread_each(loop: Any) -> Any:
    """A thread for each iteration of ``loop``."""
    extent = int(loop.extent)
    threads = min(generic.THREADS, max(32, extent))

    def body(block: Any, thread: Any) -> Any:
        flat = block * threads + thread
        inside = tvm_ffi.structural_map(loop.body, (tirx.Var, lambda v: flat if v.same_as(loop.loop_var) else v))
        return when(True if extent % threads == 0 else flat < extent, inside)

    return launch(ceil_div(extent, threads), threads, body)
