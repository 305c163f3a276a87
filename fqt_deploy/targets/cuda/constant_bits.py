"""Compute the bits of constants that are read as another type: CUDA source takes the address of what is read so.

Before::

    T.reinterpret("float32", T.reinterpret("int32", T.float32(0.0)))

After::

    T.float32(0.0)
"""

from __future__ import annotations

import struct
from typing import Any

import tvm_ffi
from tvm import ir, tirx

from fqt_deploy.ops.lib.dtypes import dtype_of

_REINTERPRET = ir.Op.get("tirx.reinterpret")
_FORMATS = {"float32": "<f", "int32": "<i", "uint32": "<I"}


def with_constant_bits(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """``function`` without constants that are read as another type; run it when nothing simplifies floats any more."""
    return function.with_body(tvm_ffi.structural_map(function.body, (ir.Call, _folded)))


def _folded(call: Any) -> Any:
    if not call.op.same_as(_REINTERPRET) or not isinstance(call.args[0], (tirx.FloatImm, tirx.IntImm)):
        return call
    source, target = dtype_of(call.args[0]), dtype_of(call)
    if source not in _FORMATS or target not in _FORMATS:
        return call
    bits = struct.pack(_FORMATS[source], call.args[0].value)
    (value,) = struct.unpack(_FORMATS[target], bits)
    if target == "float32" and value != value:  # a NaN's bits say which layer it is of
        return tirx.call_pure_extern("float32", "__int_as_float", tirx.const(struct.unpack("<i", bits)[0], "int32"))
    return tirx.const(value, target)
