"""Keep products rounded to float32 before they are added: across ops, and where bits are made of the result.

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
from fqt_deploy.ops.lib.float32 import opaque_operand, seen_through
from fqt_deploy.targets.cpu.generic.stored_values import with_values


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
    """``function`` with fences around float32 products and quotients that are operands of a sum or difference.

    The result of an op that was inlined is rounded in every kernel, a product within an op in those that make bits.
    Terms of a sum over an axis are added in another order than PyTorch's anyway, and may be fused where no bits depend.
    """
    within = makes_bits(function)

    def fenced(operand: Any) -> Any:
        formula = seen_through(operand)
        kinds = (tirx.Mul,) if formula.same_as(operand) else (tirx.Mul, tirx.Div)  # LLVM multiplies by 1 / 2^n instead
        if (
            not isinstance(formula, kinds)
            or dtype_of(formula) != "float32"
            or (formula.same_as(operand) and not within)
        ):
            return operand
        return tirx.call_llvm_pure_intrin("float32", "llvm.arithmetic.fence", formula)

    def rewrite(node: Any) -> Any:
        if dtype_of(node) != "float32":
            return node
        a, b = fenced(node.a), fenced(node.b)
        return node if a.same_as(node.a) and b.same_as(node.b) else type(node)(a, opaque_operand(b))

    return with_values(
        function,
        lambda value: tvm_ffi.structural_map(value, ((tirx.Add, tirx.Sub), rewrite)),
        combinations=within,
    )
