"""Keep products rounded to float32 before they are added, where bits are made of the result.

LLVM contracts ``a * b + c`` to one fused operation, which rounds once; PyTorch rounds twice. A sign or an argmax of the
result could then differ from the reference. The fence costs nothing but the fusion.

Before::

    x * a + b

After::

    llvm.arithmetic.fence(x * a) + b
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx

from fqt_deploy.ops.lib.dtypes import dtype_of


def makes_bits(function: tirx.PrimFunc) -> bool:
    """Whether ``function`` makes decisions of floating point values: integers, booleans, or results of comparisons."""
    dtypes = [str(parameter.dtype) for parameter in function.params]
    outputs = int(function.attrs["fqt.outputs"])
    makes_integers = any(not dtype.startswith("float") for dtype in dtypes[-outputs:])
    return "float32" in dtypes[:-outputs] and (makes_integers or _compares(function))


def _compares(function: tirx.PrimFunc) -> bool:
    """Whether some floating point values are compared, as by the mask of a ReLU's gradient."""
    found: list[bool] = []

    def visit(node: Any) -> None:
        found.append(dtype_of(node.a) == "float32")

    tvm_ffi.structural_walk(function.body, ((tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE), visit))
    return any(found)


def round_products(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with a fence around every float32 product that is an operand of a sum or difference."""

    def fenced(operand: Any) -> Any:
        if isinstance(operand, tirx.Mul) and dtype_of(operand) == "float32":
            return tirx.call_llvm_pure_intrin("float32", "llvm.arithmetic.fence", operand)
        return operand

    def rewrite(node: Any) -> Any:
        if dtype_of(node) != "float32":
            return node
        return type(node)(fenced(node.a), fenced(node.b))

    return function.with_body(tvm_ffi.structural_map(function.body, ((tirx.Add, tirx.Sub), rewrite)))
