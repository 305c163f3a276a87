"""Let NaN win in maxima and minima of float32, as in PyTorch: ``a > b ? a : b`` loses it if ``a`` is the one.

Before::

    max(x, 1.0), max(max(x, y), z)

After::

    max(1.0, x), select(is_nan(x, y), nan, max(max(x, y), z))

The first is one instruction on x86, as before. Reductions stay: TVM would not know them again. A nest of maxima has one
test, which mentions each operand once more: the expression does not grow with the depth of the nest.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import tvm_ffi
from tvm import tirx

from fqt_deploy.ops.lib.dtypes import dtype_of
from fqt_deploy.ops.lib.float32 import CODED, is_nan, seen_through
from fqt_deploy.targets.cpu.generic.stored_values import with_values


def nan_extremes(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """``function`` with maxima and minima that NaN wins; kernels that make codes stay."""
    if str(function.attrs["fqt.op"]) in CODED:
        return function

    def rewrite(node: Any) -> Any:
        if dtype_of(node) != "float32":
            return node
        operands = [*_operands(node.a, type(node)), *_operands(node.b, type(node))]
        constants = [o for o in operands if _is_constant(o)]
        others = [o for o in operands if not _is_constant(o)]
        nest = reduce(type(node), [*constants, *others])
        if len(others) < 2:
            return nest
        # The last passes by itself.
        return tirx.Select(is_nan(*others[:-1]), tirx.const(math.nan, "float32"), nest)

    return with_values(
        function,
        lambda value: tvm_ffi.structural_map(value, ((tirx.Max, tirx.Min), rewrite)),
        combinations=False,
    )


def _operands(operand: Any, kind: type[Any]) -> list[Any]:
    """The operands of a nest of maxima, rewritten or not; an expression of another kind alone."""
    nest = seen_through(operand)
    if (
        isinstance(nest, tirx.Select)
        and isinstance(nest.true_value, tirx.FloatImm)
        and math.isnan(nest.true_value.value)
    ):
        nest = nest.false_value
    return [*_operands(nest.a, kind), *_operands(nest.b, kind)] if isinstance(nest, kind) else [operand]


def _is_constant(operand: Any) -> bool:
    return isinstance(seen_through(operand), tirx.FloatImm)
