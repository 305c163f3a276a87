"""ATen reductions in ONNX: the table beside ``ops/aten/reductions.py``."""

from __future__ import annotations

from typing import Any

import torch

from fqt_deploy.export.graph_writer import GraphWriter, Operand, dtype_name
from fqt_deploy.ops.aten.reductions import reduced_axes

aten = torch.ops.aten
prims = torch.ops.prims

ONNX_REDUCTIONS: dict[Any, str] = {
    aten.sum.dim_IntList: "ReduceSum",
    aten.sum.default: "ReduceSum",
    prims.sum.default: "ReduceSum",
    aten.mean.dim: "ReduceMean",
    aten.mean.default: "ReduceMean",
    aten.amax.default: "ReduceMax",
    aten.amin.default: "ReduceMin",
}
"""ONNX's op for every key of ``REDUCTIONS``."""


def write_reduction(graph: GraphWriter, target: Any, result: torch.Tensor, args: tuple[Any, ...]) -> str:
    """Write one call of ``target``.

    Args:
        graph: receives the nodes.
        target: a key of ``ONNX_REDUCTIONS``.
        result: shape and dtype of the result.
        args: the ``Operand``, then PyTorch's ``dim`` and ``keepdim`` where given.
    """
    operand: Operand = args[0]
    axes = reduced_axes(args, len(operand.shape))
    keepdims = int(len(result.shape) == len(operand.shape))
    value = graph.cast(operand, dtype_name(result.dtype))
    return graph(ONNX_REDUCTIONS[target], value, graph.constant(axes, "int64"), keepdims=keepdims)
