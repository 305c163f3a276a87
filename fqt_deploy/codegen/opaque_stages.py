"""Hide the formula of each op that is inlined from TVM's simplifier, which takes float32 for real numbers.

Every op's result is a float32 number, rounded, or a NaN, whether it is written to memory or not. The kernel of
``(x + c) - c`` would compute ``x`` otherwise, and that of ``not (x < y)`` what ``y <= x`` is.

Before::

    member0[i] = x[i] + c
    result[i] = member0[i] - c

After::

    member0[i] = reinterpret("float32", reinterpret("int32", x[i] + c))
    result[i] = member0[i] - c
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import tvm_ffi
from tvm import s_tir, tirx

from fqt_deploy.ops.lib.float32 import opaque


def with_opaque_stages(function: tirx.PrimFunc, names: Collection[str]) -> tirx.PrimFunc:
    """``function`` with what the stages ``names`` write made opaque: float32 and boolean values."""

    def store(statement: Any) -> Any:
        return tirx.BufferStore(statement.buffer, opaque(statement.value), statement.indices)

    def rewrite(block: Any) -> Any:
        if str(block.name_hint) not in names:
            return block
        body = tvm_ffi.structural_map(block.body, (tirx.BufferStore, store))
        return s_tir.SBlock(
            block.iter_vars, block.reads, block.writes, block.name_hint, body, block.init, block.alloc_buffers,
            block.match_buffers, block.annotations,
        )  # fmt: skip

    return function.with_body(tvm_ffi.structural_map(function.body, (s_tir.SBlock, rewrite)))
