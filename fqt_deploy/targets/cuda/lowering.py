"""The lowering of TensorIR with explicit threads to host and device functions: TVM's passes, without scheduling."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.tirx import compilation_pipeline

from fqt_deploy.targets.cuda.constant_bits import with_constant_bits

PIPELINE = "fqt_cuda"
"""Name under which TVM knows the pipeline."""


def _pipeline() -> tuple[tvm.transform.Pass, Callable[[], Any], Callable[[], Any]]:
    """The passes in order; unlike TVM's own, for kernels that place their barriers and need no buffer layouts."""
    mark_in_place, keep_aliases = _alias_passes()
    passes = [
        s_tir.transform.UnifyThreadBinding(),
        tirx.transform.StmtSimplify(),
        tirx.transform.LowerTIRxOpaque(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        tirx.transform.CommonSubexprElim(),
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        mark_in_place,
        tirx.transform.SplitHostDevice(),
        keep_aliases,
        tirx.transform.MakePackedAPI(),
    ]
    return (
        tvm.transform.Sequential(passes),
        compilation_pipeline.finalize_host_passes,
        _finalize_device,
    )


def _finalize_device() -> tvm.transform.Pass:
    @tirx.transform.prim_func_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def fold(function: tirx.PrimFunc, _module: tvm.IRModule, _context: Any) -> tirx.PrimFunc:
        return with_constant_bits(function)

    return tvm.transform.Sequential([compilation_pipeline.finalize_device_passes(), fold])


def _alias_passes() -> tuple[tvm.transform.Pass, tvm.transform.Pass]:
    """Kernels of functions that write in place must not promise distinct memory; splitting off kernels forgets that."""
    in_place: set[str] = set()

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def mark_in_place(module: tvm.IRModule, _context: Any) -> tvm.IRModule:
        for variable, function in module.functions.items():
            if not bool(function.attrs.get("tirx.noalias", True)):
                in_place.add(variable.name_hint)
        return module

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def keep_aliases(module: tvm.IRModule, _context: Any) -> tvm.IRModule:
        for variable, function in list(module.functions.items()):
            if re.sub(r"_kernel(_\d+)?$", "", variable.name_hint) in in_place:
                module.update_func(variable, function.with_attr("tirx.noalias", False))
        return module

    return mark_in_place, keep_aliases


def register() -> str:
    """Make the pipeline known to TVM and return its name."""
    compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)
    return PIPELINE
