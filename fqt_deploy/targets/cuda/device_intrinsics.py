"""Replace what CUDA code generation does not know, or spells otherwise, by functions of the device.

Before::

    T.popcount(word: int32)

After::

    __popc(word)
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import ir, tirx

from fqt_deploy.ops.lib.dtypes import dtype_of
from fqt_deploy.targets.cuda.kernel_builder import popcount

_POPCOUNT = ir.Op.get("tirx.popcount")


def with_device_intrinsics(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with every popcount of a 32-bit word as one instruction."""

    def rewrite(call: Any) -> Any:
        if not call.op.same_as(_POPCOUNT):
            return call
        assert dtype_of(call.args[0]) in ("int32", "uint32")
        return popcount(call.args[0])

    return function.with_body(tvm_ffi.structural_map(function.body, (ir.Call, rewrite)))
