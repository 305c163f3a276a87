"""Embeddings: rows of a table at integers, and the gradient of the table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.aten.aten_op import AtenOp, aten, define_aten, extents
from fqt_deploy.ops.aten.samples import WIDE, call
from fqt_deploy.ops.lib.dtypes import dtype_name
from fqt_deploy.ops.lib.late_modules import te
from fqt_deploy.ops.lib.onnx_body import OnnxValue, OnnxWriter
from fqt_deploy.ops.lib.safe_index import elements_along, inside, onnx_not_negative, row_or_none
from fqt_deploy.ops.lib.scatter import ScatterAxes, scatter, scatter_onnx
from fqt_deploy.ops.op import Cost, Kind, Operand
from fqt_deploy.ops.traits import ANY_SIGN, Layout, Nan, keeps_sign, leads, summed, zero_with_any

_TABLE = WIDE[0]
_TOKENS = torch.tensor([[2, 0, 2, 5, 2], [1, 2, 3, 2, 0]])
"""[2, 5] int64, some of them repeated."""


@define_aten(
    aten.embedding.default, kind=Kind.ELEMENTWISE, batch=leads("indices"), zero=zero_with_any("weight"),
    sign=keeps_sign("weight"), nan=Nan.KEPT,
    layout=Layout.OPAQUE, samples=[call(_TABLE, _TOKENS), call(_TABLE, _TOKENS.int(), 2)],
)  # fmt: skip
class Embedding(AtenOp):
    """The row of ``weight`` at each integer; ``padding_idx`` matters to the gradient alone.

    An integer that names no row gives NaN, so that the loss shows it: PyTorch raises an error, and what lies beside the
    table is not read.
    """

    weight: Operand
    indices: Operand
    padding_idx: int

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Each element from its row."""

        def at(*i: Any) -> Any:
            return elements_along(self.weight, 0, self.indices[i[:-1]], (None, i[-1]))

        return te.compute(extents(result), at, name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """Writes a Gather node, and returns the name of its result."""
        index = onnx_not_negative(graph, self.indices, int(self.weight.shape[0]))
        return graph("Gather", self.weight.name, index, axis=0)


def _gradients(width: int, seed: int) -> Tensor:
    return torch.randn(2, 5, width, generator=torch.Generator().manual_seed(seed))


@define_aten(
    aten.embedding_dense_backward.default, kind=Kind.PRODUCT, batch=summed("grad_output", "indices"),
    zero=zero_with_any("grad_output"), sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE,
    samples=[
        call(_gradients(32, 0), _TOKENS, 7, -1, False), call(_gradients(5, 1), _TOKENS, 6, 2, False),
        call(_gradients(256, 2), _TOKENS.int(), 300, 0, False), call(_gradients(3, 3)[0], _TOKENS[0], 6, -1, False),
    ],
)  # fmt: skip
class EmbeddingDenseBackward(AtenOp):
    """The gradient of the table: each row is the sum, in order, of the gradients of the integers that name it.

    Integers that are ``padding_idx``, or name no row, give nothing. ``scale_grad_by_freq`` is refused where the
    forward op has it.
    """

    grad_output: Operand
    indices: Operand
    num_weights: int
    padding_idx: int
    scale_grad_by_freq: bool

    def _axes(self) -> ScatterAxes:
        *sources, width = extents(self.grad_output)
        return ScatterAxes((), (self.num_weights,), tuple(sources), (width,))

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """Rows of the gradient added to rows of zeros."""

        def row(*i: Any) -> Any:
            token = self.indices[i]
            counted = inside(token, self.num_weights)
            counted += [token != self.padding_idx] if self.padding_idx >= 0 else []
            return row_or_none(counted, token.astype("int32"))

        place = te.compute(extents(self.indices), row, name=f"{name}_place")
        return scatter(self._axes(), None, place, self.grad_output, add=True, name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """The same, where what is left out is zero."""
        place, gradient = graph.cast(self.indices, "int64"), self.grad_output
        if self.padding_idx >= 0:
            padding = graph("Equal", place, graph.constant(self.padding_idx, "int64"))
            padding = graph("Unsqueeze", padding, graph.constant([-1], "int64"))
            dtype = dtype_name(result.dtype)
            kept = graph("Where", padding, graph.constant(0.0, dtype), gradient.name)
            gradient = OnnxValue(kept, dtype, gradient.shape)
        return scatter_onnx(graph, self._axes(), None, place, gradient, add=True)

    def work(self, result: Tensor) -> Cost:
        """An addition an element of the gradient."""
        return Cost(flops=int(self.grad_output.numel()))
