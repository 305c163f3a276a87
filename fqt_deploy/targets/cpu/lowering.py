"""TVM's lowering for CPUs, with vectors of counters as a sum: TVM computes and inserts each of their lanes by itself.

Random numbers count elements as uint32, which indices never are. Making sixteen such numbers lane by lane takes longer
than the random numbers of them; a broadcast and an addition are two instructions.

Before::

    ramp(base, 1, 16)

After::

    broadcast(base, 16) + ramp(0, 1, 16)                               # a constant
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import pipeline

from fqt_deploy.ops.lib.counter_random import uint32
from fqt_deploy.ops.lib.dtypes import dtype_of

PIPELINE = "fqt_cpu"
"""Name under which TVM knows the passes."""


def split_ramps(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with each uint32 ramp from a computed number on as that number and a ramp from 0 on."""

    def rewrite(ramp: Any) -> Any:
        if dtype_of(ramp.base) != "uint32" or isinstance(ramp.base, tirx.IntImm):
            return ramp
        lanes = int(ramp.lanes)
        return tirx.Add(tirx.Broadcast(ramp.base, lanes), tirx.Ramp(uint32(0), ramp.stride, lanes))

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.Ramp, rewrite)))


def _pipeline() -> tuple[tvm.transform.Pass, Callable[[], Any], Callable[[], Any]]:
    passes, _, finalize_device = pipeline.default_s_tir_pipeline()
    return passes, _finalize_host, finalize_device


def _finalize_host() -> tvm.transform.Pass:
    @tirx.transform.prim_func_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def split(function: tirx.PrimFunc, _module: tvm.IRModule, _context: Any) -> tirx.PrimFunc:
        return split_ramps(function)

    return tvm.transform.Sequential([pipeline.finalize_host_passes(), split])


def register() -> str:
    """Make the passes known to TVM and return their name."""
    tvm.tirx.compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)
    return PIPELINE
