"""From TensorIR with explicit threads to host and device functions: TVM's passes, in an order without scheduling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.tirx import compilation_pipeline

PIPELINE = "fqt_cuda"
"""Name under which TVM knows the pipeline."""


def _pipeline() -> tuple[tvm.transform.Pass, Callable[[], Any], Callable[[], Any]]:
    """Unlike TVM's own: kernels place their barriers themselves, and no buffer has a tile layout to lower."""
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
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
    ]
    return (
        tvm.transform.Sequential(passes),
        compilation_pipeline.finalize_host_passes,
        compilation_pipeline.finalize_device_passes,
    )


def register() -> str:
    """Make the pipeline known to TVM and return its name."""
    compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)
    return PIPELINE
