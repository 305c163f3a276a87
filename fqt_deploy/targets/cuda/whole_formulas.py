"""Put bound values back where they are read: a thread computes a formula at several positions, each with its own.

Before::

    let read0 = x[i] * scale in read0 * erf(read0)

After::

    (x[i] * scale) * erf(x[i] * scale)

nvcc finds what is equal.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx


def with_whole_formulas(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """``function`` without bindings inside of its formulas."""

    def unbound(let: Any) -> Any:
        return tvm_ffi.structural_map(let.body, (tirx.Var, lambda var: let.value if var.same_as(let.var) else var))

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.Let, unbound)))
