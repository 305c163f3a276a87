"""Let NaN win in maxima and minima of float32, as in PyTorch: CUDA's ``max`` returns the number.

Before::

    max(x, y)

After::

    fqt_max(x, y)
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx

from fqt_deploy.ops.lib.dtypes import dtype_of
from fqt_deploy.ops.lib.float32 import CODED

_FUNCTIONS = {tirx.Max: "fqt_max", tirx.Min: "fqt_min"}
DEFINITIONS = "".join(
    f"static __device__ __forceinline__ float {name}(float a, float b) {{ return a {sign} b || a != a ? a : b; }}\n"
    for name, sign in (("fqt_max", ">"), ("fqt_min", "<"))
)
"""What emitted source that calls them needs."""


def nan_extremes(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """``function`` with maxima and minima that NaN wins; kernels that make codes stay."""
    if str(function.attrs["fqt.op"]) in CODED:
        return function

    def rewrite(node: Any) -> Any:
        if dtype_of(node) != "float32":
            return node
        return tirx.call_pure_extern("float32", _FUNCTIONS[type(node)], node.a, node.b)

    return function.with_body(tvm_ffi.structural_map(function.body, ((tirx.Max, tirx.Min), rewrite)))


def with_definitions(source: str) -> str:
    """CUDA source with the functions that it calls, in front of its first kernel."""
    if "fqt_max(" not in source and "fqt_min(" not in source:
        return source
    first = source.index('extern "C" __global__')
    return source[:first] + DEFINITIONS + source[first:]
