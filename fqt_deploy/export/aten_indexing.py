"""ATen ops that move elements, and constants, in ONNX: the table beside ``ops/aten/indexing.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fqt_deploy.export.graph_writer import GraphWriter, Operand, dtype_name

aten = torch.ops.aten


def _shape(result: torch.Tensor) -> list[int]:
    return [int(d) for d in result.shape]


def _view(graph: GraphWriter, result: torch.Tensor, x: Operand, *_: Any) -> str:
    return graph("Reshape", x.name, graph.constant(_shape(result), "int64"))


def _permute(graph: GraphWriter, _: torch.Tensor, x: Operand, order: list[int]) -> str:
    return graph("Transpose", x.name, perm=[axis % len(order) for axis in order])


def _expand(graph: GraphWriter, result: torch.Tensor, x: Operand, *_: Any) -> str:
    return graph("Expand", x.name, graph.constant(_shape(result), "int64"))


def _slice(
    graph: GraphWriter,
    _: torch.Tensor,
    x: Operand,
    axis: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> str:
    bounds = [0 if start is None else start, np.iinfo(np.int64).max if end is None else end, axis, step]
    return graph("Slice", x.name, *[graph.constant([bound], "int64") for bound in bounds])


def _pad(graph: GraphWriter, _: torch.Tensor, x: Operand, amounts: list[int], value: float = 0.0) -> str:
    before, after = amounts[-2::-2], amounts[::-2]  # from the last axis backwards, in pairs
    axes = list(range(len(x.shape) - len(before), len(x.shape)))
    pads, filling = graph.constant([*before, *after], "int64"), graph.constant(value, x.dtype)
    return graph("Pad", x.name, pads, filling, graph.constant(axes, "int64"))


def _select(graph: GraphWriter, _: torch.Tensor, x: Operand, axis: int, position: int) -> str:
    return graph("Gather", x.name, graph.constant(position, "int64"), axis=axis % len(x.shape))


def _cat(graph: GraphWriter, result: torch.Tensor, tensors: list[Operand], axis: int = 0) -> str:
    dtype = dtype_name(result.dtype)
    return graph("Concat", *[graph.cast(tensor, dtype) for tensor in tensors], axis=axis % len(result.shape))


def _gather(graph: GraphWriter, _: torch.Tensor, x: Operand, axis: int, index: Operand) -> str:
    return graph("GatherElements", x.name, index.name, axis=axis % len(x.shape))


def _scatter_value(
    graph: GraphWriter, _: torch.Tensor, x: Operand, axis: int, index: Operand, value: float
) -> str:  # fmt: skip
    extents = graph.constant(index.shape, "int64")
    values = graph("Expand", graph.constant(value, x.dtype), extents)
    return graph("ScatterElements", x.name, index.name, values, axis=axis % len(x.shape))


def _constant(graph: GraphWriter, result: torch.Tensor, value: float) -> str:
    scalar = graph.constant(value, dtype_name(result.dtype))
    return graph("Expand", scalar, graph.constant(_shape(result), "int64")) if _shape(result) else scalar


def _arange(graph: GraphWriter, result: torch.Tensor, start: float, step: float) -> str:
    dtype = dtype_name(result.dtype)
    return graph.constant(start + step * np.arange(_shape(result)[0]), dtype)


ONNX_INDEXING: dict[Any, Callable[..., str]] = {
    aten.view.default: _view,
    aten.permute.default: _permute,
    aten.expand.default: _expand,
    aten.slice.Tensor: _slice,
    aten.constant_pad_nd.default: _pad,
    aten.select.int: _select,
    aten.cat.default: _cat,
    aten.gather.default: _gather,
    aten.scatter.value: _scatter_value,
    aten.full.default: lambda g, r, _, value: _constant(g, r, value),
    aten.full_like.default: lambda g, r, _, value: _constant(g, r, value),
    aten.scalar_tensor.default: lambda g, r, value: _constant(g, r, value),
    aten.zeros.default: lambda g, r, *_: _constant(g, r, 0),
    aten.empty.memory_format: lambda g, r, *_: _constant(g, r, 0),
    aten.ones.default: lambda g, r, *_: _constant(g, r, 1),
    aten.zeros_like.default: lambda g, r, *_: _constant(g, r, 0),
    aten.ones_like.default: lambda g, r, *_: _constant(g, r, 1),
    aten.arange.start_step: lambda g, r, start, end, step=1: _arange(g, r, start, step),
    aten.arange.default: lambda g, r, end: _arange(g, r, 0, 1),
}
"""What writes the nodes for every key of ``INDEXING``: (writer, result, *args) -> name of the result."""
