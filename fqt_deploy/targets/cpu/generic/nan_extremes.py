"""Let NaN win in maxima and minima of float32, as in PyTorch: ``a > b ? a : b`` loses it if ``a`` is the one.

Before::

    max(x, 1.0), max(x, y)

After::

    max(1.0, x), let a = x, b = y in select(isnan(a) or a > b, a, b)

The first is one instruction on x86, as before. Reductions stay: TVM would not know them again.
"""

from __future__ import annotations

import itertools
from typing import Any

import tvm_ffi
from tvm import tirx

from fqt_deploy.ops.lib.dtypes import dtype_of
from fqt_deploy.ops.lib.float32 import seen_through
from fqt_deploy.targets.cpu.generic.stored_values import with_values

_WINS = {tirx.Max: lambda a, b: a > b, tirx.Min: lambda a, b: a < b}


def nan_extremes(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """``function`` with maxima and minima that NaN wins."""
    number = itertools.count()

    def rewrite(node: Any) -> Any:
        if dtype_of(node) != "float32" or _is_constant(node.a):
            return node
        if _is_constant(node.b):
            return type(node)(node.b, node.a)
        i = next(number)
        a, b = tirx.Var(f"larger{i}", "float32"), tirx.Var(f"other{i}", "float32")
        wins = _WINS[type(node)](a, b)
        return tirx.Let(a, node.a, tirx.Let(b, node.b, tirx.Select(tirx.Or(tirx.isnan(a), wins), a, b)))

    return with_values(
        function,
        lambda value: tvm_ffi.structural_map(value, ((tirx.Max, tirx.Min), rewrite)),
        combinations=False,
    )


def _is_constant(operand: Any) -> bool:
    return isinstance(seen_through(operand), tirx.FloatImm)
