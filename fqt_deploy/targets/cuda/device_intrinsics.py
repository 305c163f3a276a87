"""Replace what CUDA code generation does not know, or spells otherwise, by functions of the device.

Before::

    T.popcount(word: int32)
    T.fma(a, b, c)                                                      # float32

After::

    __popc(word)
    fmaf(a, b, c)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tvm_ffi
from tvm import ir, tirx

from fqt_deploy.ops.lib.dtypes import dtype_of
from fqt_deploy.targets.cuda.kernel_builder import fused_multiply_add, popcount

_INTRINSICS: Mapping[str, tuple[Callable[..., Any], frozenset[str]]] = {
    "tirx.popcount": (popcount, frozenset({"int32", "uint32"})),
    "tirx.fma": (fused_multiply_add, frozenset({"float32"})),
}
"""By what TVM calls an operation, the device's function for it and the dtypes of its operands."""


def with_device_intrinsics(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with every popcount of a word, and every fused multiply-add of float32, as one instruction."""

    def rewrite(call: Any) -> Any:
        name = call.op.name if isinstance(call.op, ir.Op) else ""
        if name not in _INTRINSICS:
            return call
        spelled, dtypes = _INTRINSICS[name]
        assert dtype_of(call.args[0]) in dtypes
        return spelled(*call.args)

    return function.with_body(tvm_ffi.structural_map(function.body, (ir.Call, rewrite)))
