"""Keep products rounded to float32 before they are added, where bits are made of the result or both may cancel.

LLVM contracts ``a * b + c`` to one fused operation, which rounds once; PyTorch rounds twice. A sign or an argmax of the
result could then differ from the reference, and of ``x * 0.1 - x * 0.1`` something would be left. The fence costs
nothing but the fusion.

Before::

    x * a + b

After::

    llvm.arithmetic.fence(x * a) + b
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad

from fqt_deploy.ops.lib.dtypes import dtype_of
from fqt_deploy.ops.lib.float32 import opaque_operand, seen_through
from fqt_deploy.targets.cpu.generic.stored_values import with_values

_READS = (TensorLoad, tirx.Var)


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
    """The function with fences around float32 products that are operands of a sum or difference.

    In kernels that make bits all are fenced. In others one is whose other operand is computed from an element that the
    product reads, too: there the two may cancel, and what is left would be the rounding alone. Terms of a sum over an
    axis are added in another order than PyTorch's anyway.
    """
    within = makes_bits(function)
    bound = _bound_values(function)

    def fenced(operand: Any, other: Any) -> Any:
        outside = formula = seen_through(operand)
        while formula in bound:
            formula = seen_through(bound[formula])
        if dtype_of(formula) != "float32" or not isinstance(formula, (tirx.Mul, tirx.Div)):
            return operand
        if within and isinstance(formula, tirx.Mul):
            needed = True
        else:  # of an op that was inlined; LLVM multiplies by 1 / 2^n instead of dividing
            needed = not formula.same_as(operand) and bool(_elements(formula, bound) & _elements(other, bound))
        if not needed:
            return operand
        return tirx.call_llvm_pure_intrin("float32", "llvm.arithmetic.fence", outside)

    def apart(operand: Any, other: Any) -> Any:
        """The second operand fenced, and not known to equal the first: infinity less infinity is NaN."""
        changed = fenced(operand, other)
        return changed if changed.same_as(operand) else opaque_operand(changed)

    def rewrite(node: Any) -> Any:
        if dtype_of(node) != "float32":
            return node
        return type(node)(fenced(node.a, node.b), apart(node.b, node.a))

    return with_values(
        function,
        lambda value: tvm_ffi.structural_map(value, ((tirx.Add, tirx.Sub), rewrite)),
        combinations=within,
    )


def _bound_values(function: tirx.PrimFunc) -> dict[Any, Any]:
    """The values that formulas read by a variable, by it."""
    bound: dict[Any, Any] = {}

    def visit(let: Any) -> None:
        bound[let.var] = let.value

    tvm_ffi.structural_walk(function.body, (tirx.Let, visit))
    return bound


def _elements(expression: Any, bound: Mapping[Any, Any]) -> frozenset[str]:
    """The elements of whole arrays that an expression reads, as text; one of fewer axes is a coefficient."""
    found: list[tuple[str, int]] = []

    def visit(node: Any) -> None:
        if not isinstance(node, TensorLoad):
            if node in bound:
                tvm_ffi.structural_walk(bound[node], (_READS, visit))
            return
        axes = {str(v) for index in node.indices for v in _variables(index)}
        found.append((f"{node.source.name}{list(node.indices)}", len(axes)))

    tvm_ffi.structural_walk(expression, (_READS, visit))
    most = max((axes for _, axes in found), default=0)
    return frozenset(text for text, axes in found if axes == most)


def _variables(index: Any) -> list[Any]:
    found: list[Any] = []
    tvm_ffi.structural_walk(index, (tirx.Var, found.append))
    return found
