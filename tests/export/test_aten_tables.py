"""Every ATen op with a kernel has its ONNX: the tables agree in keys, and the nodes with PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from fqt_deploy.core.graph import Stage, TrainingGraph, propagate
from fqt_deploy.export.aten_indexing import ONNX_INDEXING
from fqt_deploy.export.aten_pointwise import ONNX_POINTWISE
from fqt_deploy.export.aten_reductions import ONNX_REDUCTIONS
from fqt_deploy.export.onnx_model import to_onnx
from fqt_deploy.ops.aten.indexing import INDEXING
from fqt_deploy.ops.aten.pointwise import POINTWISE
from fqt_deploy.ops.aten.reductions import REDUCTIONS

aten, prims = torch.ops.aten, torch.ops.prims

A = torch.tensor([[0.5, -1.25, 2.0], [3.0, 0.0, -0.75]])
B = torch.tensor([1.5, -1.25, 0.25])
P = A.abs() + 0.5
MASK = A > 0
BYTES = torch.tensor([[12, 10, 7]], dtype=torch.int32)
INDEX = torch.tensor([[0, 2], [1, 1]])

CALLS: dict[Any, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    **{op: [((P, B), {}), ((P, 2.0), {}), ((P, BYTES), {})] for op in
       (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)},
    **{op: [((P, 3), {})] for op in (aten.add.Scalar, aten.sub.Scalar, aten.mul.Scalar, aten.div.Scalar)},
    prims.div.default: [((P, P + 1), {})],
    **{op: [((A, B), {}), ((BYTES, BYTES.flip(1)), {})] for op in
       (aten.lt.Tensor, aten.le.Tensor, aten.gt.Tensor, aten.ge.Tensor, aten.eq.Tensor, aten.ne.Tensor)},
    **{op: [((A, 0.5), {}), ((BYTES, 10), {})] for op in
       (aten.lt.Scalar, aten.le.Scalar, aten.gt.Scalar, aten.ge.Scalar, aten.eq.Scalar, aten.ne.Scalar)},
    **{op: [((MASK, ~MASK), {}), ((BYTES, BYTES.flip(1)), {})] for op in
       (aten.bitwise_and.Tensor, aten.bitwise_or.Tensor)},
    **{op: [((MASK, ~MASK), {})] for op in (aten.logical_and.default, aten.logical_or.default)},
    aten.logical_not.default: [((MASK,), {})],
    aten.bitwise_not.default: [((MASK,), {}), ((BYTES,), {})],
    **{op: [((A, B.expand(2, 3)), {})] for op in (aten.maximum.default, aten.minimum.default)},
    aten.where.self: [((MASK, A, B), {})],
    **{op: [((A,), {})] for op in
       (aten.relu.default, aten.neg.default, aten.abs.default, aten.sign.default, aten.exp.default, aten.tanh.default,
        aten.sigmoid.default, aten.erf.default, aten.clone.default, aten.expm1.default, aten.isnan.default)},
    **{op: [((P,), {})] for op in
       (aten.log.default, aten.log1p.default, aten.sqrt.default, aten.rsqrt.default, aten.reciprocal.default)},
    aten.gelu.default: [((A,), {}), ((A,), {"approximate": "tanh"})],
    aten.gelu_backward.default: [((P, A), {}), ((P, A), {"approximate": "tanh"})],
    aten.pow.Tensor_Scalar: [((P, 2), {}), ((P, 0.5), {})],
    aten.pow.Tensor_Tensor: [((P, B), {})],
    aten.pow.Scalar: [((2.0, A), {})],
    aten.clamp.default: [((A, -0.5, 1.0), {}), ((A, None, 1.0), {}), ((A, 0.0), {})],
    aten.clamp_min.default: [((A, 0.25), {})],
    aten.clamp_max.default: [((A, 0.25), {})],
    aten._to_copy.default: [((BYTES,), {"dtype": torch.float32}), ((MASK,), {"dtype": torch.int64})],
    **{op: [((A, [0]), {}), ((A, [-1], True), {})] for op in (aten.sum.dim_IntList, aten.mean.dim)},
    **{op: [((A,), {})] for op in (aten.sum.default, aten.mean.default)},
    prims.sum.default: [((A, [1]), {})],
    **{op: [((A, [1]), {}), ((A, [0], True), {})] for op in (aten.amax.default, aten.amin.default)},
    aten.view.default: [((A, [3, 2]), {})],
    aten.permute.default: [((A, [1, 0]), {})],
    aten.expand.default: [((B, [4, 3]), {})],
    aten.slice.Tensor: [((A, 1, 1), {}), ((A, -1, -2, 3), {}), ((A, 1, 0, 3, 2), {})],
    aten.select.int: [((A, 1, -1), {})],
    aten.constant_pad_nd.default: [((A, [1, 2]), {}), ((A, [0, -1, 2, 0], 1.5), {}), ((A, [-1, 1]), {})],
    aten.cat.default: [(([A, A + 1], -1), {}), (([B, B],), {})],
    aten.gather.default: [((A, 1, INDEX), {})],
    aten.scatter.value: [((A, 1, INDEX[:, :1], 9.0), {})],
    aten.full.default: [(([2, 2], 1.5), {})],
    aten.full_like.default: [((A, 2.5), {})],
    aten.scalar_tensor.default: [((3.5,), {})],
    aten.zeros.default: [(([2],), {})],
    aten.empty.memory_format: [(([0],), {})],
    aten.ones.default: [(([2],), {})],
    aten.zeros_like.default: [((A,), {})],
    aten.ones_like.default: [((A,), {})],
    aten.arange.start_step: [((1, 9, 2), {})],
    aten.arange.default: [((5,), {})],
}  # fmt: skip
"""Calls of every overload."""


def test_tables_have_the_keys_of_the_compiler() -> None:
    assert ONNX_POINTWISE.keys() == POINTWISE.keys()
    assert ONNX_REDUCTIONS.keys() == REDUCTIONS.keys()
    assert ONNX_INDEXING.keys() == INDEXING.keys()
    assert CALLS.keys() == {*POINTWISE, *REDUCTIONS, *INDEXING}


def _graph(target: Any, args: Any, kwargs: Any) -> tuple[TrainingGraph, dict[str, np.ndarray]]:
    """A graph of one call whose tensor operands are inputs, and their values."""
    graph, mode, feeds = fx.Graph(), FakeTensorMode(), {}

    def placeholder(value: Any) -> Any:
        if isinstance(value, list):
            return [placeholder(item) for item in value]
        if not isinstance(value, torch.Tensor):
            return value
        name = f"operand{len(feeds)}"
        feeds[name] = np.array(value.numpy())
        node = graph.placeholder(name)
        node.meta["val"] = mode.from_tensor(value.contiguous())
        return node

    operands = [placeholder(a) for a in args]
    call = graph.call_function(target, tuple(operands), kwargs)
    propagate(call)
    graph.output((call,))
    module = fx.GraphModule(torch.nn.Module(), graph)
    return TrainingGraph(module, list(feeds), ["result"], {}, 1, Stage.LOWERED), feeds


@pytest.mark.parametrize(
    ("target", "args", "kwargs"),
    [pytest.param(op, *call, id=f"{op}-{i}") for op, calls in CALLS.items() for i, call in enumerate(calls)],
)
def test_agrees_with_pytorch(target: Any, args: Any, kwargs: Any) -> None:
    graph, feeds = _graph(target, args, kwargs)
    model = to_onnx(graph, "one", {}, training=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (actual,) = session.run(["result"], feeds)
    expected = target(*args, **kwargs).numpy()
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
